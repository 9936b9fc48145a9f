"""The browser that prints the book and tests its pages: where it is, and how it runs without a network."""

from __future__ import annotations

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Software WebGL for the 3-D figures; a proxy that does not exist, so that no request leaves the machine.
ARGUMENTS = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--proxy-server=127.0.0.1:9",
    "--proxy-bypass-list=<-loopback>",
)


def find_chromium() -> str | None:
    """The first Chromium on the PATH; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)
