"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const night = window.matchMedia("(prefers-color-scheme: dark)");
  const embedded = document.getElementById("figures");
  const { figures, themes } = embedded ? JSON.parse(embedded.textContent) : { figures: {}, themes: {} };
  const drawn = new Set();

  const theme = () => root.dataset.theme || (night.matches ? "dark" : "light");

  const colours = (name) => {
    const c = themes[name];
    const out = { "font.color": c.ink, "modebar.color": c.axis, "modebar.activecolor": c.ink };
    for (const axis of ["xaxis", "yaxis"]) {
      out[axis + ".gridcolor"] = c.grid;
      out[axis + ".linecolor"] = c.axis;
      out[axis + ".zerolinecolor"] = c.axis;
    }
    return out;
  };

  const paint = (place, name) => {
    Plotly.relayout(place, colours(name));
    const bars = figures[place.id].data.flatMap((trace, i) => (trace.error_y ? [i] : []));
    if (bars.length) Plotly.restyle(place, { "error_y.color": themes[name].ink }, bars);
  };

  const draw = (place) => {
    if (drawn.has(place)) return;
    drawn.add(place);
    const { data, layout } = figures[place.id];
    // On a touch screen a drag must scroll the page, not zoom the chart, and there is no hovering for the buttons.
    const mouse = window.matchMedia("(hover: hover) and (pointer: fine)").matches;
    layout.dragmode = mouse ? "zoom" : false;
    place.replaceChildren();
    Plotly.newPlot(place, data, layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: mouse ? "hover" : false,
      modeBarButtons: [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
      toImageButtonOptions: { format: "svg", filename: place.id },
    });
    paint(place, theme());
  };

  const repaint = (name) => drawn.forEach((place) => paint(place, name));

  const show = () => {
    button.textContent = theme() === "dark" ? "Light" : "Dark";
    repaint(theme());
  };

  if (location.hash === "#dark" || location.hash === "#light") root.dataset.theme = location.hash.slice(1);
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    show();
  });
  night.addEventListener("change", show);
  show();

  const places = Object.keys(figures).map((id) => document.getElementById(id)).filter(Boolean);
  const watch = new IntersectionObserver(
    (seen) => seen.filter((s) => s.isIntersecting).forEach((s) => { watch.unobserve(s.target); draw(s.target); }),
    { rootMargin: "600px" },
  );
  places.forEach((place) => watch.observe(place));
  window.addEventListener("beforeprint", () => { places.forEach(draw); if (places.length) repaint("light"); });
  window.addEventListener("afterprint", () => { if (places.length) repaint(theme()); });

  const links = new Map([...document.querySelectorAll(".toc a")].map((a) => [a.getAttribute("href").slice(1), a]));
  const reading = new IntersectionObserver(
    (seen) => seen.forEach((s) => { const a = links.get(s.target.id); if (a) a.classList.toggle("here", s.isIntersecting); }),
    { rootMargin: "-20% 0px -70% 0px" },
  );
  document.querySelectorAll("main > section").forEach((section) => reading.observe(section));
})();
