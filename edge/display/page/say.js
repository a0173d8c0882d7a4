// Words on the page.

/** Show a text; one that is shown already is left alone, or a screen reader would read it out again and again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A probability in whole percent; 0 and 100 are said of what is exactly that. */
export function percent(probability) {
  const rounded = Math.round(100 * probability);
  if (rounded === 100 && probability < 1) return ">99";
  if (rounded === 0 && probability > 0) return "<1";
  return String(rounded);
}
