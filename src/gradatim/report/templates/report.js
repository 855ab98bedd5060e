"use strict";
(function () {
  var root = document.documentElement;
  var KEY = "gradatim-theme";
  function stored() { try { return localStorage.getItem(KEY); } catch (e) { return null; } }
  function store(v) { try { localStorage.setItem(KEY, v); } catch (e) { /* a private window keeps nothing */ } }
  var saved = stored();
  if (saved === "light" || saved === "dark") root.dataset.theme = saved;

  function dark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function themeButton() {
    var button = document.getElementById("theme");
    function say() { button.setAttribute("aria-label", dark() ? "Switch to light" : "Switch to dark"); }
    button.hidden = false;
    say();
    button.addEventListener("click", function () {
      root.dataset.theme = dark() ? "light" : "dark";
      store(root.dataset.theme);
      say();
    });
  }

  function copyButtons() {
    document.querySelectorAll(".copy").forEach(function (button) {
      button.hidden = false;
      button.addEventListener("click", function () {
        var code = button.parentNode.querySelector("code");
        var done = function () {
          button.textContent = "Copied";
          setTimeout(function () { button.textContent = "Copy"; }, 1500);
        };
        var byHand = function () {
          var range = document.createRange();
          range.selectNodeContents(code);
          getSelection().removeAllRanges();
          getSelection().addRange(range);
          if (document.execCommand("copy")) done();
        };
        if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, byHand);
        else byHand();
      });
    });
  }

  // Details are open on paper; those that were closed are closed again afterwards.
  function printing() {
    var opened = [];
    addEventListener("beforeprint", function () {
      opened = Array.from(document.querySelectorAll("details:not([open])"));
      opened.forEach(function (d) { d.open = true; });
    });
    addEventListener("afterprint", function () {
      opened.forEach(function (d) { d.open = false; });
    });
  }

  function filters() {
    var form = document.querySelector(".filters");
    if (!form) return;
    var names = ["q", "paper", "room", "verdict"];
    var fields = {};
    names.forEach(function (n) { fields[n] = document.getElementById(n); });
    var groups = Array.from(document.querySelectorAll("#forest tbody")).map(function (body) {
      return {
        body: body,
        paper: body.dataset.paper,
        rooms: body.dataset.rooms.split(" "),
        rows: Array.from(body.querySelectorAll("tr.claim"))
      };
    });
    var total = groups.reduce(function (n, g) { return n + g.rows.length; }, 0);
    var found = document.getElementById("found");
    var none = document.getElementById("none");
    var clear = document.getElementById("clear");
    var table = document.getElementById("forest");

    function apply() {
      var words = fields.q.value.toLowerCase().split(/\s+/).filter(Boolean);
      var shown = 0;
      groups.forEach(function (g) {
        var fits = (!fields.paper.value || g.paper === fields.paper.value) &&
          (!fields.room.value || g.rooms.indexOf(fields.room.value) >= 0);
        var here = 0;
        g.rows.forEach(function (tr) {
          var ok = fits && (!fields.verdict.value || tr.dataset.verdict === fields.verdict.value) &&
            words.every(function (w) { return tr.dataset.text.indexOf(w) >= 0; });
          tr.hidden = !ok;
          here += ok;
        });
        g.body.hidden = !here;
        shown += here;
      });
      var any = names.some(function (n) { return fields[n].value; });
      found.textContent = any ? shown + " of " + total + " claims" : total + (total === 1 ? " claim" : " claims");
      clear.hidden = !any;
      none.hidden = shown > 0;
      table.hidden = shown === 0;
    }

    function write() {
      var p = new URLSearchParams();
      names.forEach(function (n) { if (fields[n].value) p.set(n, fields[n].value); });
      var hash = p.toString();
      // An empty hash would scroll to the top; a file opened from disk cannot lose its query otherwise.
      history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
    }

    function read() {
      var hash = location.hash.slice(1);
      if (hash && hash.indexOf("=") < 0) return;
      var p = new URLSearchParams(hash);
      names.forEach(function (n) {
        fields[n].value = p.get(n) || "";
        if (fields[n].selectedIndex === -1) fields[n].value = "";
      });
      apply();
    }

    form.hidden = false;
    form.addEventListener("submit", function (e) { e.preventDefault(); });
    form.addEventListener("input", function () { apply(); write(); });
    form.addEventListener("reset", function () { setTimeout(function () { apply(); write(); fields.q.focus(); }); });
    addEventListener("hashchange", read);
    apply();
    read();
  }

  document.addEventListener("DOMContentLoaded", function () {
    themeButton();
    copyButtons();
    printing();
    filters();
  });
})();
