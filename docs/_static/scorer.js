// How results of the search are ranked: those of Sphinx, but a title that is asked for in full comes first.
var Scorer = {
  score: ([docname, title, anchor, descr, score]) => {
    const asked = new URLSearchParams(location.search).get("q").trim().toLowerCase();
    // "Papers > Attention Is All You Need"; "gla: Gated linear attention"
    const names = [...title.split(" > ").slice(-1), ...title.split(": ")];
    return names.some((name) => name.toLowerCase() === asked) ? score + 200 : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
