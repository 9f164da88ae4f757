// What pages need beyond HTML: dialogs, live regions, the code of a link, copying. Without it pages show all there is.

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
  if (event.target.method !== "post") return;
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "yes";
  for (const button of event.target.querySelectorAll("button[type=submit]")) button.setAttribute("aria-busy", "true");
});

// A page that comes back from the browser's cache can be sent anew.
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

// The code of a link stands behind "#", so that no server and no log ever sees it in an address. Where this page is shown already,
// a link that is opened in its place loads nothing.
const login = document.getElementById("login");
if (login) {
  enter();
  addEventListener("hashchange", enter);
}

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
  let busy = false;
  let again = false;
  async function renew() {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    do {
      again = false;
      await take().catch(() => {});
    } while (again);
    busy = false;
  }
  const source = new EventSource(url);
  source.addEventListener("changed", renew);
  // The session may have ended, or the node: a page that is fetched says which.
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(renew, 1000);
  });
  // "5 minutes ago" grows old.
  setInterval(renew, 60_000);
  addEventListener("pagehide", () => source.close());
}

async function take() {
  const answer = await fetch(location.href, { headers: { "x-coffer-live": "1" }, cache: "no-store" });
  if (answer.redirected || answer.status === 401) {
    location.reload();
    return;
  }
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const region of document.querySelectorAll("[data-live]")) {
    const renewed = page.getElementById(region.id);
    if (renewed) morph(region, renewed);
  }
}

// Makes `old` what `renewed` is and touches nothing that is the same, so that focus, selection and folds stay.
function morph(old, renewed) {
  if (old.isEqualNode(renewed)) return;
  if (old.nodeType !== renewed.nodeType || old.nodeName !== renewed.nodeName) {
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
  const wanted = [...renewed.childNodes];
  wanted.forEach((child, at) => {
    if (at < old.childNodes.length) morph(old.childNodes[at], child);
    else old.append(document.importNode(child, true));
  });
  while (old.childNodes.length > wanted.length) old.lastChild.remove();
}
