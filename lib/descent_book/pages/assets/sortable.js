// A heading of a wide table sorts its rows: upwards, downwards, and back as they were. Works by keyboard too.
document.addEventListener("DOMContentLoaded", () => {
  const text = (row, column) => row.cells[column].innerText.trim();
  const order = (a, b) => {
    const difference = parseFloat(a.replaceAll(",", "")) - parseFloat(b.replaceAll(",", ""));
    return Number.isNaN(difference) ? a.localeCompare(b, "en") : difference;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const [body] = table.tBodies;
    const original = [...body.rows];
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.innerText.trim();
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: "none" }[heading.ariaSort] ?? "ascending";
        for (const each of headings) each.ariaSort = "none";
        heading.ariaSort = next;
        const sign = { ascending: 1, descending: -1, none: 0 }[next];
        const compare = (a, b) => sign * order(text(a, column), text(b, column));
        body.append(...(sign ? [...original].sort(compare) : original));
      });
    });
  }
});
