// When the Enter key sends.

// with a touch keyboard Enter is the only way to a new line
export const touch = matchMedia("(hover: none) and (pointer: coarse)").matches;

/** Call `send` when the user sends with the keyboard from `area`. */
export function sendsOn(area, send) {
  area.enterKeyHint = touch ? "enter" : "send";
  area.addEventListener("keydown", (event) => {
    // 229: Safari tells the end of a composition before the Enter that ended it
    const composing = event.isComposing || event.keyCode === 229;
    const wanted = touch ? event.ctrlKey || event.metaKey : !event.shiftKey;
    if (event.key !== "Enter" || composing || !wanted) return;
    event.preventDefault();
    send();
  });
}
