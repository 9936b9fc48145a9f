// The filters of the scorecard: a card is shown when it has every class that is chosen.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector("form.score-filters");
  if (!form) return;
  const cards = [...document.querySelectorAll(".scores > .score")], choices = [...form.querySelectorAll("select")];

  function show() {
    const wanted = choices.map((choice) => choice.value).filter(Boolean);
    for (const card of cards) card.hidden = !wanted.every((name) => card.classList.contains(name));
    const shown = cards.filter((card) => !card.hidden).length;
    form.querySelector("output").textContent = `${shown} of ${cards.length} claims`;
  }

  // a link to a card that a filter hides shows it
  function reveal() {
    const card = cards.find((each) => `#${each.id}` === location.hash);
    if (card?.hidden) { form.reset(); show(); card.scrollIntoView(); }
  }

  form.addEventListener("change", show);
  addEventListener("hashchange", reveal);
  form.hidden = false;
  show();
});
