// What pages need beyond HTML: dialogs, live regions, the code of a link, copying. Without it pages show all there is.

const SILENT = "No connection to the node: what is shown is not of now.";
const UNSENT = "Not sent, for there is no connection to the node. What was typed is kept: send it again when the node is back.";
const WAITS = "The node is at it. Where a KMS or a disk takes its time, this does too.";
// Longer than a request can take.
const SENT_FOR = 160_000;

// What is said now.
const said = { page: "", form: "" };

// A page that answers a refused form stands where it can be loaded again, which does not send the form again.
const at = document.body.dataset.at;
const answers = document.querySelector("dialog[data-open]") !== null;
if (at && (answers || location.pathname !== at)) history.replaceState(null, "", at);

// Dialogs.
for (const dialog of document.querySelectorAll("dialog[data-open]")) {
  dialog.showModal();
  (dialog.querySelector("[aria-invalid]") ?? dialog.querySelector("[role=alert]"))?.focus();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.opens) document.getElementById(button.dataset.opens)?.showModal();
  if (button && "closes" in button.dataset) button.closest("dialog")?.close();
  if (button?.dataset.copies) copy(button);
});

async function copy(button) {
  const label = button.textContent;
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 2000);
}

// What a dialog holds is gone with it: secrets, what was confirmed, what was wrong.
document.addEventListener("close", (event) => {
  const dialog = event.target;
  for (const form of dialog.querySelectorAll("form")) form.reset();
  say("form", "");
  if ("open" in dialog.dataset) take().catch(() => say("page", SILENT));
  delete dialog.dataset.open;
  // The browser gives it back to whatever had it, if anything had.
  const focused = document.activeElement;
  if (focused !== document.body && !dialog.contains(focused)) return;
  const opener = document.querySelector(`[data-opens="${dialog.id}"]`);
  (opener ?? document.getElementById("main")).focus();
}, true);

// A form is sent once, however often its button is pressed, and when the node answers and knows the session: nothing that was typed
// is lost.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || form.id === "login") return;
  event.preventDefault();
  if (!form.dataset.sent) send(form);
});

async function send(form) {
  form.dataset.sent = "yes";
  for (const button of senders(form)) button.setAttribute("aria-busy", "true");
  // What is said then is read out, also if it was said before.
  say("form", "");
  const alike = (it) => it.getAttribute("action") === form.getAttribute("action");
  const page = await take().catch(() => say("form", UNSENT));
  const now = form.isConnected ? form : [...document.forms].find(alike);
  if (!page || !now || ![...page.forms].some(alike)) {
    if (page) say("form", "Not sent, for this can't be done any more, or not in this session: load the page again.");
    return unsend(form);
  }
  setTimeout(() => say("form", WAITS), 1500);
  // Who stopped the browser can send it again.
  setTimeout(() => unsend(form), SENT_FOR);
  now.submit();
}

function unsend(form) {
  delete form.dataset.sent;
  for (const button of senders(form)) button.removeAttribute("aria-busy");
}

function senders(form) {
  return form.querySelectorAll("button[type=submit]");
}

// What comes into a region of news is read out; what was there when the page was loaded is not.
const notice = document.querySelector(".notices .notice");
if (notice) {
  const region = notice.parentElement;
  notice.remove();
  setTimeout(() => region.append(notice), 100);
}

// A page that comes back from the browser's cache can be sent anew.
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

// The code of a link stands behind "#", so that no server and no log ever sees it in an address. Where this page is shown already,
// a link that is opened in its place loads nothing.
const login = document.getElementById("login");
if (login) {
  // Whoever was sent here comes back to where that was, also with a link that is opened in this tab.
  const { next } = login.elements;
  if (next.value) sessionStorage.setItem("next", next.value);
  else next.value = sessionStorage.getItem("next") ?? "";
  enter();
  addEventListener("hashchange", enter);
} else sessionStorage.removeItem("next");

function enter() {
  if (location.hash.length < 2) return;
  login.elements.code.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
  login.requestSubmit();
}

// Live regions: when the node has news, the page is fetched again, and what differs in it takes the place of what is shown.
const from = document.body.dataset.liveFrom;
if (from) follow(from);

function follow(url) {
  let source;
  let busy = false;
  let again = false;
  async function renew() {
    again = busy;
    if (busy) return;
    busy = true;
    do {
      again = false;
      await take().catch(() => say("page", SILENT));
    } while (again);
    busy = false;
  }
  // A browser has six connections to a host: a page that nobody sees holds none.
  function listen() {
    source?.close();
    if (document.hidden) return;
    source = new EventSource(url);
    source.addEventListener("changed", renew);
    source.addEventListener("error", () => setTimeout(renew, 1000));
    source.addEventListener("error", () => {
      // After an answer that was none it does not try again by itself.
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
    });
  }
  document.addEventListener("visibilitychange", () => {
    listen();
    if (!document.hidden) renew();
  });
  addEventListener("pagehide", () => source?.close());
  listen();
  // "5 minutes ago" grows old.
  setInterval(() => document.hidden || renew(), 60_000);
}

// Answers the page as it is now, if this one can still be used.
async function take() {
  const answer = await fetch(location.href, { headers: { "x-coffer-live": "1" }, cache: "no-store" });
  const lives = document.querySelector("[data-live]") !== null;
  const typing = document.querySelector("dialog[open]") !== null;
  if (answer.status === 401 || (answer.redirected && new URL(answer.url).pathname === "/login")) {
    // What was typed stays: with another session, opened in another tab, it can still be sent.
    if (typing) say("page", "Not sent yet: the session has ended. Open another one in a new tab (coffer console), and send this then.");
    else location.reload();
    return null;
  }
  // What the page was about is gone, or can't be shown now, and the answer says so; a page that says so itself has nothing to renew.
  if (!answer.ok) {
    if (typing) throw new Error(answer.statusText);
    if (lives) location.reload();
    return null;
  }
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (!lives && !at && page.querySelector("[data-live]")) location.reload();
  say("page", "");
  const token = page.querySelector("input[name=csrf]");
  for (const input of document.querySelectorAll("input[name=csrf]")) input.value = token?.value ?? "";
  const focused = document.activeElement;
  for (const shown of document.querySelectorAll("[data-live], dialog:not([open])")) {
    const renewed = page.getElementById(shown.id);
    if (!renewed || shown.isEqualNode(renewed)) continue;
    morph(shown, renewed);
    if (shown.nodeName === "DIALOG") for (const form of shown.querySelectorAll("form")) form.reset();
  }
  // What had the focus may be gone.
  if (focused !== document.body && !focused.isConnected) document.getElementById("main").focus();
  return page;
}

// Says something where it is read out, of the page or of a form that was sent: also in a dialog, for behind it nobody reads.
function say(what, text) {
  said[what] = text;
  const news = said.form || said.page;
  for (const place of document.querySelectorAll(".of-page")) {
    if (place.textContent !== news) place.textContent = news;
  }
}

// Makes `old` what `renewed` is and touches nothing that is the same, so that focus, selection and folds stay. What has a key or an
// address is never made into something that has another one: who presses a button presses the one that was there.
function morph(old, renewed) {
  if (old.isEqualNode(renewed)) return;
  if (!isSame(old, renewed)) {
    old.replaceWith(document.importNode(renewed, true));
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    old.data = renewed.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!renewed.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of renewed.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  let place = old.firstChild;
  for (const wanted of renewed.childNodes) {
    const key = keyOf(wanted);
    // What stands before the one with this key is gone.
    if (key && [...old.children].some((child) => keyOf(child) === key)) {
      while (keyOf(place) !== key) place = remove(place);
    }
    if (place && isSame(place, wanted)) {
      const next = place.nextSibling;
      morph(place, wanted);
      place = next;
    } else if (place && !key && !keyOf(place)) {
      const next = place.nextSibling;
      place.replaceWith(document.importNode(wanted, true));
      place = next;
    } else old.insertBefore(document.importNode(wanted, true), place);
  }
  while (place) place = remove(place);
}

function remove(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

function isSame(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName && keyOf(one) === keyOf(other);
}

function keyOf(node) {
  return node?.dataset?.key ?? node?.getAttribute?.("action") ?? node?.getAttribute?.("href") ?? node?.dataset?.opens ?? "";
}
