// Counts the tokens of an answer and the time that they take.

/** Fed with the parts of an answer as they come. */
export class Meter {
  #start = performance.now();
  #first = null;
  #last = null;
  #parts = 0;
  #thoughtEnd = null;

  take(part) {
    if (!part.text && !part.thought) return;
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#parts += 1;
  }

  /** The answer begins after a thought. */
  endThought() {
    this.#thoughtEnd ??= this.#last;
  }

  /**
   * tokens, tokens/s, seconds to the first, seconds of thought; null where there are none.
   *
   * The first token's time is the prompt's, so the rate is that of the tokens after it.
   */
  values(counted) {
    const tokens = counted ?? this.#parts;
    const seconds = (this.#last - this.#first) / 1000;
    const began = this.#first === null;
    return {
      tokens,
      // what came all at once tells no rate
      rate: seconds > 0.01 ? (tokens - 1) / seconds : null,
      wait: began ? null : (this.#first - this.#start) / 1000,
      thinking: began ? null : ((this.#thoughtEnd ?? this.#last) - this.#first) / 1000,
    };
  }
}
