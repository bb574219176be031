"use strict";
let first = true; // the plot that says how all are read
for (const figure of document.querySelectorAll("figure.plot")) {
  const readout = figure.querySelector(".readout");
  const marks = [...figure.querySelectorAll("svg .mark")];
  if (!marks.length) continue;
  const chosen = marks.findIndex((mark) => mark.querySelector(".ring"));
  let now = Math.max(0, chosen);
  readout.textContent = first ? readout.dataset.hint : chosen < 0 ? "" : marks[now].getAttribute("aria-label");
  first = false;
  const say = (mark) => {
    figure.querySelector(".mark.now")?.classList.remove("now");
    mark.classList.add("now");
    readout.textContent = mark.getAttribute("aria-label");
  };
  const move = (to) => {
    marks[now].setAttribute("tabindex", "-1");
    now = (to + marks.length) % marks.length;
    marks[now].setAttribute("tabindex", "0");
    marks[now].focus();
  };
  marks.forEach((mark, index) => {
    mark.setAttribute("tabindex", index === now ? "0" : "-1");
    mark.addEventListener("pointerenter", () => say(mark));
    mark.addEventListener("click", () => say(mark));
    mark.addEventListener("focus", () => say(mark));
    mark.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) move(now + step);
      else if (event.key === "Home") move(0);
      else if (event.key === "End") move(marks.length - 1);
      else return;
      event.preventDefault();
    });
  });
}
for (const button of document.querySelectorAll(".copyable button")) {
  const code = button.closest(".code").querySelector("code");
  button.hidden = false;
  button.addEventListener("click", async () => {
    const before = button.innerHTML;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => { button.innerHTML = before; }, 2000);
  });
}
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("main > section > details")) each.open = true;
});
