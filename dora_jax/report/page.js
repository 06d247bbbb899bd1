(() => {
  "use strict";
  const state = JSON.parse(document.getElementById("state").textContent);
  const views = {};
  const fill = (body, rows) => {
    const heads = body.closest("table").querySelectorAll("th");
    body.replaceChildren(...rows.map((values) => {
      const row = document.createElement("tr");
      values.forEach((value, place) => {
        const cell = document.createElement("td");
        cell.className = heads[place].className;
        cell.textContent = value;  // never innerHTML: what runs wrote is text
        row.append(cell);
      });
      return row;
    }));
    body.closest(".scroll").hidden = rows.length === 0;
  };
  const item = (text) => {
    const entry = document.createElement("li");
    entry.textContent = text;
    return entry;
  };
  // Every answer was computed beforehand; the slider only looks it up.
  const show = (place) => {
    const answer = state.budgets.answers[place];
    document.getElementById("amount").textContent = answer.text;
    document.getElementById("verdict").textContent = answer.verdict;
    document.getElementById("slider").setAttribute("aria-valuetext", answer.text);
    for (const body of document.querySelectorAll("[data-rows]")) fill(body, answer.rows[body.dataset.rows]);
    for (const text of document.querySelectorAll("[data-text]")) text.textContent = answer.texts[text.dataset.text];
    document.getElementById("near").replaceChildren(...answer.near.map(item));
    if (views.pareto) views.pareto.signal("budget", answer.usd).runAsync();
  };
  const slider = document.getElementById("slider");
  if (slider) {
    slider.addEventListener("input", () => show(Number(slider.value)));
    show(Number(slider.value));  // a reload keeps the slider's place
  }
  const options = { mode: "vega", renderer: "svg", actions: false,
    tooltip: { disableDefaultStyle: true } };
  const draw = async () => {
    for (const place of document.querySelectorAll("[data-figure]")) {
      const name = place.dataset.figure;
      const drawn = await vegaEmbed(place, state.figures[name], options);
      views[name] = drawn.view;
      if (name === "pareto" && slider) show(Number(slider.value));
    }
    window.drawnAfterMs = performance.now();  // since the page was asked for
    document.documentElement.dataset.drawn = "all";
  };
  draw();
  // Charts have the width of the window; on paper that is another one.
  addEventListener("beforeprint", () => dispatchEvent(new Event("resize")));
})();
