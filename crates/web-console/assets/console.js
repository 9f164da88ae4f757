// What pages need beyond HTML: dialogs, live regions, the code of a link, copying. Without it pages show all there is.

const SILENT = "No connection to the node: what is shown is not of now.";

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

// A form is sent once, however often its button is pressed.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (form.dataset.sent || form.closest("dialog")) event.preventDefault();
  if (form.dataset.sent) return;
  form.dataset.sent = "yes";
  for (const button of senders(form)) button.setAttribute("aria-busy", "true");
  // Who stopped the browser can send it again.
  setTimeout(() => unsend(form), 10_000);
  if (form.closest("dialog")) send(form);
});

// What was typed into a dialog is sent when the node answers and knows the session: nothing of it is lost.
async function send(form) {
  const answers = await take().catch(() => say(SILENT));
  if (answers) form.submit();
  else unsend(form);
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
      await take().catch(() => say(SILENT));
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

// Answers whether this page can still be used.
async function take() {
  const answer = await fetch(location.href, { headers: { "x-coffer-live": "1" }, cache: "no-store" });
  if (answer.redirected || answer.status === 401) {
    // What was typed stays: with another session, opened in another tab, it can still be sent.
    if (document.querySelector("dialog[open]")) {
      say("The session has ended. Open another one in a new tab (coffer console), and send this then.");
    } else location.reload();
    return false;
  }
  // What the page was about is gone, and the answer says so; a page that says so itself has nothing that is renewed.
  if (answer.status === 404 && document.querySelector("[data-live]")) location.reload();
  if (!answer.ok) throw new Error(answer.statusText);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  say("");
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
  return true;
}

// Says something of the page itself, where it is read out: also in a dialog, for behind it nobody reads.
function say(text) {
  for (const place of document.querySelectorAll(".of-page")) {
    if (place.textContent !== text) place.textContent = text;
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
