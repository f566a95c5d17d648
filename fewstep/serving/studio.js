// The board of the studio: a canvas over a picture, one pixel of it for each of the picture's, on which is marked what
// is to be drawn anew. Boards come and go with the page, so everything is listened for at the document.
(() => {
  "use strict";
  const COLOUR = "#d1004b";
  let stroke = null; // the stroke under way: its canvas, whether it marks, and where it was last

  const pen = (canvas) => canvas.getContext("2d", { willReadFrequently: true });
  const board = (element) => element.closest(".fs-board");
  const brush = (canvas) => Number(board(canvas).querySelector("input").value);
  const marked = (canvas, x, y) => pen(canvas).getImageData(x, y, 1, 1).data[3] > 0;

  function dab(canvas, x, y, mark) {
    const size = brush(canvas), on = pen(canvas);
    const left = Math.round(x - (size - 1) / 2), top = Math.round(y - (size - 1) / 2);
    on.fillStyle = COLOUR;
    if (mark) on.fillRect(left, top, size, size);
    else on.clearRect(left, top, size, size);
  }

  function along(canvas, from, to, mark) {
    const steps = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
    for (let k = 0; k <= steps; k++) {
      dab(canvas, from[0] + ((to[0] - from[0]) * k) / steps, from[1] + ((to[1] - from[1]) * k) / steps, mark);
    }
  }

  function place(canvas, event) {
    const box = canvas.getBoundingClientRect();
    const inside = (value, most) => Math.min(most - 1, Math.max(0, Math.floor(value * most)));
    return [
      inside((event.clientX - box.left) / box.width, canvas.width),
      inside((event.clientY - box.top) / box.height, canvas.height),
    ];
  }

  function cursor(canvas, x, y) {
    canvas.dataset.at = `${x},${y}`;
    const shown = board(canvas).querySelector(".fs-cursor").style, size = brush(canvas);
    shown.left = `${(100 * Math.round(x - (size - 1) / 2)) / canvas.width}%`;
    shown.top = `${(100 * Math.round(y - (size - 1) / 2)) / canvas.height}%`;
    shown.width = `${(100 * size) / canvas.width}%`;
    shown.height = `${(100 * size) / canvas.height}%`;
  }

  const at = (canvas) => (canvas.dataset.at || `${canvas.width >> 1},${canvas.height >> 1}`).split(",").map(Number);
  const isBoard = (event) => event.target instanceof HTMLCanvasElement && event.target.matches(".fs-board canvas");

  document.addEventListener("pointerdown", (event) => {
    if (!isBoard(event) || event.button !== 0) return;
    const canvas = event.target, from = place(canvas, event);
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    stroke = { canvas, mark: !marked(canvas, ...from), from };
    along(canvas, from, from, stroke.mark);
    cursor(canvas, ...from);
  });
  document.addEventListener("pointermove", (event) => {
    if (stroke === null || event.target !== stroke.canvas) return;
    const to = place(stroke.canvas, event);
    along(stroke.canvas, stroke.from, to, stroke.mark);
    stroke.from = to;
  });
  for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => (stroke = null));

  document.addEventListener("keydown", (event) => {
    if (!isBoard(event)) return;
    const canvas = event.target, [x, y] = at(canvas);
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move) {
      const stay = (value, most) => Math.min(most - 1, Math.max(0, value));
      cursor(canvas, stay(x + move[0], canvas.width), stay(y + move[1], canvas.height));
    } else if (event.key === " " || event.key === "Enter") {
      dab(canvas, x, y, !marked(canvas, x, y));
    } else return;
    event.preventDefault();
  });
  document.addEventListener("focusin", (event) => {
    if (isBoard(event)) cursor(event.target, ...at(event.target));
  });
  document.addEventListener("click", (event) => {
    if (!(event.target instanceof Element) || !event.target.matches(".fs-board button")) return;
    const canvas = board(event.target).querySelector("canvas");
    pen(canvas).clearRect(0, 0, canvas.width, canvas.height);
  });

  // What is marked, as a PNG in base64: opaque where the picture is to be drawn anew.
  window.fewstepMarked = () => document.querySelector(".fs-board canvas")?.toDataURL("image/png") ?? "";
})();
