(() => {
  "use strict";
  const state = JSON.parse(document.getElementById("state").textContent);
  const views = {};
  const cells = (values) => {
    const row = document.createElement("tr");
    values.forEach((value, place) => {
      const cell = document.createElement("td");
      if (place > 0) cell.className = "number";
      cell.textContent = value;  // never innerHTML: what runs wrote is text
      row.append(cell);
    });
    return row;
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
    document.querySelector("#plans tbody").replaceChildren(...answer.plans.map(cells));
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
