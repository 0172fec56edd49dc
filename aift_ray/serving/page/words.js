// Every text of the page in both languages, and the switch between them.
//
// An element with data-word shows that text; data-label and data-placeholder name the texts of the
// attributes. {name} in a text is filled in by say().

const WORDS = {
  ja: {
    model: "モデル",
    base: "ベースモデル",
    adapters: "アダプター",
    new: "新しい会話",
    dark: "ダークモード",
    settings: "設定",
    close: "閉じる",
    conversation: "会話",
    welcome: "モデルに話しかけてみましょう",
    welcome_more: "会話はこのページの中だけにあり、閉じると消えます。",
    message: "メッセージ",
    message_hint: "メッセージを入力",
    send: "送信",
    stop: "停止",
    keys: "Enter で送信、Shift + Enter で改行、Esc で停止",
    you: "あなた",
    copy: "コピー",
    copied: "コピーしました",
    not_copied: "コピーできませんでした",
    again: "再生成",
    retry: "もう一度試す",
    answering: "回答を生成しています",
    waiting: "応答を待っています…",
    empty: "（空の回答）",
    system: "システムプロンプト",
    system_hint: "例: あなたは丁寧な日本語で答えます。",
    sampling: "生成の設定",
    more: "詳しい設定",
    reset: "初期値に戻す",
    temperature: "temperature（温度）",
    temperature_hint: "0〜2。0 なら毎回同じ回答",
    top_p: "top_p",
    top_p_hint: "0 より大きく 1 以下",
    top_k: "top_k",
    top_k_hint: "候補の数。0 なら制限なし",
    max_tokens: "max_tokens（最大トークン数）",
    max_tokens_hint: "空欄ならコンテキスト長いっぱいまで",
    seed: "seed（乱数シード）",
    seed_hint: "整数。同じ値なら同じ回答",
    min_p: "min_p",
    min_p_hint: "0〜1",
    repetition_penalty: "repetition_penalty",
    repetition_penalty_hint: "0 より大きく 10 以下。1 で無効",
    presence_penalty: "presence_penalty",
    presence_penalty_hint: "−2〜2",
    frequency_penalty: "frequency_penalty",
    frequency_penalty_hint: "−2〜2",
    out_of_range: "{least}〜{most} の数を入れてください",
    not_whole: "整数を入れてください",
    key_title: "API キー",
    key_why: "管理者から受け取った（または起動時に表示された）キーを入力してください。タブを閉じるとキーは消去されます。",
    key: "API キー",
    key_use: "接続",
    key_missing: "キーを入力してください。",
    change_key: "API キーを変更",
    key_needed: "API キーが必要です。",
    enter_key: "キーを入力",
    figures: "{tokens} トークン · {rate} トークン/秒 · 最初の文字まで {wait}\u00a0秒",
    figures_live: "約 {tokens} トークン · 約 {rate} トークン/秒",
    figures_stopped: "停止しました · 約 {tokens} トークン · 約 {rate} トークン/秒",
    figures_length: "最大トークン数に達しました · {tokens} トークン · {rate} トークン/秒",
    error_400: "リクエストの内容に誤りがあります。",
    error_context: "会話が長すぎてモデルのコンテキスト長を超えます。新しい会話を始めるか、最大トークン数を減らしてください。",
    error_401: "API キーが正しくありません。",
    error_404: "このモデルはサーバーにありません。別のモデルを選んでください。",
    error_413: "送信内容が大きすぎます。",
    error_429: "サーバーが混み合っています。しばらくしてからもう一度試してください。",
    error_429_wait: "サーバーが混み合っています。{seconds} 秒後にもう一度試してください。",
    error_500: "サーバーでエラーが起きました。",
    error_503: "サーバーの準備ができていません。しばらくしてからもう一度試してください。",
    error_504: "時間切れです。時間内に回答が完了しませんでした。",
    error_other: "予期しない応答です（HTTP {status}）。",
    error_network: "サーバーに接続できません。ネットワークと、サーバーが動いているかを確かめてください。",
    error_cut: "回答の途中で接続が切れました。",
  },
  en: {
    model: "Model",
    base: "Base model",
    adapters: "Adapters",
    new: "New chat",
    dark: "Dark mode",
    settings: "Settings",
    close: "Close",
    conversation: "Conversation",
    welcome: "Say something to the model",
    welcome_more: "The conversation lives in this page only and is gone when you close it.",
    message: "Message",
    message_hint: "Write a message",
    send: "Send",
    stop: "Stop",
    keys: "Enter sends, Shift + Enter makes a new line, Esc stops",
    you: "You",
    copy: "Copy",
    copied: "Copied",
    not_copied: "Could not copy",
    again: "Regenerate",
    retry: "Try again",
    answering: "The model is answering",
    waiting: "Waiting for the answer…",
    empty: "(empty answer)",
    system: "System prompt",
    system_hint: "e.g. あなたは丁寧な日本語で答えます。",
    sampling: "Sampling",
    more: "More settings",
    reset: "Reset",
    temperature: "temperature",
    temperature_hint: "0 to 2; 0 gives the same answer each time",
    top_p: "top_p",
    top_p_hint: "above 0, at most 1",
    top_k: "top_k",
    top_k_hint: "number of candidates; 0 for no limit",
    max_tokens: "max_tokens",
    max_tokens_hint: "empty: whatever the context has room for",
    seed: "seed",
    seed_hint: "a whole number; the same one gives the same answer",
    min_p: "min_p",
    min_p_hint: "0 to 1",
    repetition_penalty: "repetition_penalty",
    repetition_penalty_hint: "above 0, at most 10; 1 does nothing",
    presence_penalty: "presence_penalty",
    presence_penalty_hint: "−2 to 2",
    frequency_penalty: "frequency_penalty",
    frequency_penalty_hint: "−2 to 2",
    out_of_range: "Give a number from {least} to {most}",
    not_whole: "Give a whole number",
    key_title: "API key",
    key_why: "Enter the key that you were given (or that the server printed when it started). It is erased when you close the tab.",
    key: "API key",
    key_use: "Connect",
    key_missing: "Enter a key.",
    change_key: "Change API key",
    key_needed: "An API key is needed.",
    enter_key: "Enter the key",
    figures: "{tokens} tokens · {rate} tokens/s · first text after {wait} s",
    figures_live: "about {tokens} tokens · about {rate} tokens/s",
    figures_stopped: "Stopped · about {tokens} tokens · about {rate} tokens/s",
    figures_length: "Token limit reached · {tokens} tokens · {rate} tokens/s",
    error_400: "Something in the request is wrong.",
    error_context: "The conversation is too long for the model’s context. Start a new chat or lower max_tokens.",
    error_401: "The API key is not valid.",
    error_404: "The server does not have this model. Choose another one.",
    error_413: "The message is too large.",
    error_429: "The server is busy. Try again in a while.",
    error_429_wait: "The server is busy. Try again in {seconds} s.",
    error_500: "The server failed.",
    error_503: "The server is not ready. Try again in a while.",
    error_504: "Out of time: the answer took too long.",
    error_other: "An unexpected response (HTTP {status}).",
    error_network: "The server can’t be reached. Check the network and that the server is running.",
    error_cut: "The connection broke in the middle of the answer.",
  },
};

const fillings = new WeakMap();
let language = "en";

/** Whether there is a text of that name. */
export const known = (word) => word in WORDS.en;

/** The text of that name in the present language. */
export function text(word, filling = {}) {
  return WORDS[language][word].replace(/\{(\w+)\}/g, (_, name) => filling[name]);
}

/** Show a text in an element; it follows later changes of the language. No word: nothing. */
export function say(element, word, filling = {}) {
  if (!word) {
    delete element.dataset.word;
    element.textContent = "";
    return;
  }
  element.dataset.word = word;
  fillings.set(element, filling);
  element.textContent = text(word, filling);
}

/** Put every text under `root` into the present language. */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-word]")) {
    element.textContent = text(element.dataset.word, fillings.get(element));
  }
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", text(element.dataset.label));
    if (element.localName === "button") element.title = text(element.dataset.label);
    if (element.localName === "optgroup") element.label = text(element.dataset.label);
  }
  for (const element of root.querySelectorAll("[data-placeholder]")) {
    element.placeholder = text(element.dataset.placeholder);
  }
}

/** Change the language of the whole page: "ja" or "en". */
export function speak(chosen) {
  language = chosen;
  document.documentElement.lang = chosen;
  translate(document);
}
