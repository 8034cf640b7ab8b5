// A heading that is pressed sorts the layers by its column, pressed again the other way; what is not known comes last.
const table = document.querySelector("table.layers");
const headings = [...table.tHead.rows[0].cells];
const compare = (a, b, number) => (number ? a - b : a.localeCompare(b, undefined, { numeric: true }));

const sort = (heading) => {
  const down = heading.getAttribute("aria-sort") === "ascending";
  const value = (row) => row.cells[heading.cellIndex].dataset.value;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return (down ? -1 : 1) * compare(x, y, heading.dataset.type === "number");
  });
  table.tBodies[0].append(...rows);
  headings.forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
};

headings.forEach((heading) => heading.querySelector("button").addEventListener("click", () => sort(heading)));
