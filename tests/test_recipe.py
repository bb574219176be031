import pytest

from nncompress.errors import UsageError
from nncompress.passes.prune.options import Prune
from nncompress.recipe import parse_pass, read_recipe


def test_file_and_command_line_agree(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        '[[pass]]\nname = "prune"\nsparsity = 0.5\nexclude = ["head*", "stem"]\nscope = "layer"\n'
    )
    expected = Prune(sparsity=0.5, exclude=("head*", "stem"), scope="layer")
    assert read_recipe(path) == [expected]
    assert parse_pass("prune:sparsity=0.5,exclude=head*+stem,scope=layer") == expected


def test_a_pass_prints_as_the_text_that_makes_it():
    each = Prune(sparsity=0.25, scope="layer", exclude=("head*", "stem"), remove_dead=True)
    assert parse_pass(str(each)) == each


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prun:std=1", "no pass is called 'prun'"),
        ("prune:stdd=1", "has no option 'stdd'"),
        ("prune:std=lots", "--std is not a number"),
        ("prune:std", "std has no value"),
        ("prune:std=-1", "out of range"),
    ],
)
def test_a_text_that_is_no_pass_is_refused_by_what_is_wrong(text, message):
    with pytest.raises(UsageError, match=message):
        parse_pass(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pass = 3",
        "[[pass]]\nstd = 1",
        "not toml",
        '[[pass]]\nname = "prune"\nnope = 1',
        "[[step]]\nname='prune'",
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_its_name(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"r\.toml"):
        read_recipe(path)


def test_a_recipe_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="cannot read"):
        read_recipe("nowhere.toml")


@pytest.mark.parametrize(
    "content",
    [
        b"a = " + b"[" * 20_000,
        b'[[pass]]\nname = "prune"\nexclude = ' + b"[" * 500 + b"]" * 500,
        b'[[pass]]\nname = "prune"\nstd = ' + b"9" * 5000,
        b'[[pass]]\nname = "prune"\nstd = 0x' + b"f" * 5000,
        b'[[pass]]\nname = "prune"\nstd = 1e999',
        b'[[pass]]\nname = "cluster"\nvalues = 1e300',
        b'[[pass]]\nname = "prune"\nscope = [[1]]',
        b'[[pass]]\nname = "prune"\nexclude = {a = 1}\n[[pass]]\nname = 3',
        b".".join([b"a"] * 10_000) + b" = 1",
        b"#" * 2**17,
        b"\xff",
    ],
)
def test_hostile_recipes_are_one_short_message(tmp_path, content):
    path = tmp_path / "r.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        read_recipe(path)
    assert len(str(refused.value)) < 1000


def test_recipe_that_is_no_regular_file():
    with pytest.raises(UsageError, match="/dev/zero"):
        read_recipe("/dev/zero")
