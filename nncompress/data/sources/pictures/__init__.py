"""Folders of pictures: by class, with masks, with boxes."""
