"""One study each: what a chapter measures and a notebook cannot show, and the recipes of its records."""
