// Words on the page.

/** Show a text; one that is shown already is left alone, or a screen reader would read it out again and again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
