// Hovering: a cross line through all panels at the pointer's step, and the values there. The page is whole without it.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const crosses = document.querySelectorAll(".cross");
  const nearest = (steps, step) => {
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
  };
  const add = (parent, tag, text, css) => {
    const one = document.createElement(tag);
    if (text !== undefined) one.textContent = text;
    if (css) one.className = css;
    return parent.appendChild(one);
  };
  const hide = () => {
    tip.style.display = "none";
    crosses.forEach((cross) => { cross.style.opacity = 0; });
  };
  const show = (event, svg, panel) => {
    const box = svg.getBoundingClientRect();
    const width = svg.viewBox.baseVal.width;
    const inner = width - data.left - data.right;
    const place = ((event.clientX - box.left) / box.width * width - data.left) / inner;
    let step = Math.round(Math.min(Math.max(place, 0), 1) * data.end);
    if (panel && panel.lines.length) {
      const steps = panel.lines[0].steps;
      if (steps.length) step = steps[nearest(steps, step)];
    }
    crosses.forEach((cross) => {
      const own = cross.ownerSVGElement.viewBox.baseVal.width;
      const x = data.left + (own - data.left - data.right) * step / data.end;
      cross.setAttribute("transform", `translate(${x} 0)`);
      cross.style.opacity = 0.55;
    });
    tip.replaceChildren();
    const band = data.bands.find((one) => step > one.start && step <= one.end) || data.bands[0];
    add(tip, "b", `step ${step.toLocaleString("en-US")}${band ? ", " + band.name : ""}`);
    for (const line of panel ? panel.lines : []) {
      if (!line.steps.length || step < line.steps[0]) continue;
      const row = add(tip, "span", undefined, `s${line.colour}`);
      const at = nearest(line.steps, step);
      const where = Math.abs(line.steps[at] - step) <= data.end / 100 ? "" : ` (step ${line.steps[at].toLocaleString("en-US")})`;
      add(row, "em", line.name + where);
      add(row, "strong", line.shown[at]);
    }
    if (!panel) {
      const reach = data.end * 6 / inner;
      const pointed = ((event.clientX - box.left) / box.width * width - data.left) / inner * data.end;
      for (const mark of data.marks.filter((one) => Math.abs(one.step - pointed) <= reach).slice(0, 4)) add(tip, "div", mark.label);
      if (band) add(tip, "div", band.label);
    }
    tip.style.display = "block";
    const size = tip.getBoundingClientRect();
    const left = event.clientX + 16 + size.width > innerWidth ? event.clientX - size.width - 16 : event.clientX + 16;
    tip.style.left = `${Math.max(left, 4)}px`;
    tip.style.top = `${Math.min(Math.max(event.clientY - size.height - 12, 4), innerHeight - size.height - 4)}px`;
  };
  document.querySelectorAll("[data-panel]").forEach((section) => {
    const panel = data.panels[Number(section.dataset.panel)];
    section.querySelectorAll("svg").forEach((svg) => {
      svg.addEventListener("pointermove", (event) => show(event, svg, panel));
      svg.addEventListener("pointerdown", (event) => show(event, svg, panel));
      svg.addEventListener("pointerleave", hide);
    });
  });
  addEventListener("scroll", hide, { passive: true });
})();
