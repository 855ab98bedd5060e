"use strict";
// Everything works without this file: it fills columns one by one, and shows where methods agree.
(() => {
  const form = document.getElementById("ask"), field = document.getElementById("q");
  const results = document.getElementById("results"), status = document.getElementById("status");
  let asked = 0, shown = location.search;

  const theme = document.getElementById("theme");
  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-label", "Switch to " + (dark() ? "light" : "dark")); };
  try { const kept = localStorage.getItem("gradatim-theme"); if (kept) document.documentElement.dataset.theme = kept; } catch (e) { /* storage may be off */ }
  theme.hidden = false;
  name();
  theme.addEventListener("click", () => {
    const now = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = now;
    try { localStorage.setItem("gradatim-theme", now); } catch (e) { /* as above */ }
    name();
  });

  const query = () => new URLSearchParams(new FormData(form));

  function empty(method) {
    const column = document.createElement("section");
    column.className = "column";
    column.dataset.method = method;
    column.setAttribute("aria-busy", "true");
    column.innerHTML = '<div class="head"><h2></h2><p class="sub">asking …</p></div>';
    column.querySelector("h2").textContent = method;
    return column;
  }

  async function fill(method, base, turn) {
    const one = new URLSearchParams(base);
    one.delete("m");
    one.set("m", method);
    let html;
    try {
      const answer = await fetch("/column?" + one);
      html = await answer.text();
      if (!html.startsWith("<section")) throw new Error(html);
    } catch (e) {
      html = null;
    }
    if (turn !== asked) return;
    const old = [...results.children].find((c) => c.dataset.method === method);
    if (!old) return;
    if (html === null) {
      old.removeAttribute("aria-busy");
      old.querySelector(".sub").textContent = "the server did not answer; is it still running?";
      return;
    }
    old.outerHTML = html;  // escaped by the server
    agree();
  }

  async function ask(push) {
    const base = query();
    const methods = base.getAll("m");
    if (!field.value.trim()) { field.focus(); return; }
    if (!methods.length) { form.submit(); return; }
    const turn = ++asked;
    if (push) history.pushState(null, "", "/?" + base);
    shown = location.search;
    document.title = field.value.trim().slice(0, 60) + " · gradatim search";
    const hint = document.getElementById("empty");
    if (hint) hint.remove();
    const before = new Map([...results.children].map((c) => [c.dataset.method, c]));
    results.className = "columns n" + methods.length;
    results.replaceChildren(...methods.map((m) => {
      const old = before.get(m);
      if (!old) return empty(m);
      old.setAttribute("aria-busy", "true");
      return old;
    }));
    status.textContent = "asking";
    await Promise.all(methods.map((m) => fill(m, base, turn)));
    if (turn === asked) status.textContent = [...results.children].map((c) => c.dataset.method + ": " + (c.querySelectorAll(".hit").length) + " hits").join(", ");
  }

  // The same passage in several columns: say where else it stands, and show it on hover.
  function agree() {
    const places = new Map();
    for (const hit of results.querySelectorAll(".hit")) {
      const at = [hit.closest(".column").dataset.method, hit.querySelector(".rank").textContent];
      places.set(hit.dataset.key, [...(places.get(hit.dataset.key) || []), at]);
    }
    for (const hit of results.querySelectorAll(".hit")) {
      const own = hit.closest(".column").dataset.method;
      const others = places.get(hit.dataset.key).filter(([m]) => m !== own);
      const line = hit.querySelector(".also");
      line.hidden = !others.length;
      line.textContent = others.length ? "also " + others.map(([m, r]) => r + " in " + m).join(", ") : "";
    }
  }

  const point = (key) => { for (const hit of results.querySelectorAll(".hit")) hit.classList.toggle("same", key !== null && hit.dataset.key === key); };
  const under = (e) => { const hit = e.target.closest ? e.target.closest(".hit") : null; point(hit ? hit.dataset.key : null); };
  results.addEventListener("pointerover", under);
  results.addEventListener("focusin", under);
  results.addEventListener("pointerleave", () => point(null));

  form.addEventListener("submit", (e) => { e.preventDefault(); ask(true); });
  for (const box of form.querySelectorAll("input[type=checkbox], select")) box.addEventListener("change", () => { if (field.value.trim() && results.children.length) ask(true); });
  addEventListener("popstate", () => { if (location.search !== shown) location.reload(); });
  addEventListener("keydown", (e) => {
    if (e.key === "/" && !e.ctrlKey && !e.metaKey && !e.altKey && !["INPUT", "TEXTAREA", "SELECT"].includes(document.activeElement.tagName)) {
      e.preventDefault();
      field.focus();
      field.select();
    }
  });
  agree();
})();
