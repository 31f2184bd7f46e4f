// A clip's page: keys for the links that stand in it. Nothing is read but the page itself.
"use strict";
(() => {
  const go = selector => {
    const link = document.querySelector(selector);
    if (link) location.href = link.href;
  };
  const keys = {
    ArrowLeft: () => go("a[rel=prev]"), k: () => go("a[rel=prev]"),
    ArrowRight: () => go("a[rel=next]"), j: () => go("a[rel=next]"),
    u: () => go("a.home"), "/": () => { location.href = document.querySelector("a.home").href + "#/"; },
  };
  addEventListener("keydown", event => {
    const scrolls = event.key.startsWith("Arrow") && event.target.closest(".timeline, .scroll, pre");
    if (event.ctrlKey || event.altKey || event.metaKey || scrolls || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });
  const named = location.hash && document.getElementById(location.hash.slice(1));
  if (named && named.matches(".query")) named.focus({preventScroll: true});
})();
