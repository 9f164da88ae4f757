//! What a person does in a browser. Whatever is looked for is waited for: pages load, and renew themselves.

use std::future::Future;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::TypingData;
use thirtyfour::prelude::*;

use crate::driver::{self, RUNTIME};

const PATIENCE: Duration = Duration::from_secs(20);

/// Finds what is called `name`, in the dialog if one is open: a button, a link, the head of a fold.
const BY_NAME: &str = r#"
    const scope = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document;
    return [...scope.querySelectorAll("button, a, summary")]
        .find((it) => it.checkVisibility() && it.textContent.trim() === arguments[0]) ?? null;
"#;

/// Finds the input with this label, in the dialog if one is open.
const BY_LABEL: &str = r#"
    const scope = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document;
    const label = [...scope.querySelectorAll("label")].find((it) =>
        it.checkVisibility() && it.textContent.replace("*", "").trim() === arguments[0]);
    return label ? document.getElementById(label.htmlFor) : null;
"#;

/// Whether an element leads to another page; this one then has a mark that the other has not.
const LEAVES: &str = r#"
    const leaves = arguments[0].matches("button[type=submit], a[href^='/']");
    if (leaves) window.left = false;
    return leaves;
"#;

/// A browser of its own, without a past.
pub(crate) struct Browser {
    driver: Option<WebDriver>,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        Self { driver: Some(driver::chromium(profile.path())), _profile: profile }
    }

    fn driver(&self) -> &WebDriver {
        self.driver.as_ref().unwrap()
    }

    /// Has WebDriver do something that can't fail.
    fn run<T>(&self, command: impl Future<Output = WebDriverResult<T>>) -> T {
        RUNTIME.block_on(command).unwrap()
    }

    pub(crate) fn goto(&self, url: &str) {
        self.run(self.driver().goto(url));
    }

    pub(crate) fn reload(&self) {
        self.run(self.driver().refresh());
    }

    pub(crate) fn back(&self) {
        self.run(self.driver().back());
    }

    pub(crate) fn url(&self) -> String {
        self.run(self.driver().current_url()).to_string()
    }

    /// Opens another tab and goes on in it. Answers how to come back to this one and to that.
    pub(crate) fn another_tab(&self) -> (WindowHandle, WindowHandle) {
        self.run(async {
            let this = self.driver().window().await?;
            let other = self.driver().new_tab().await?;
            self.driver().switch_to_window(other.clone()).await?;
            Ok((this, other))
        })
    }

    pub(crate) fn to_tab(&self, tab: &WindowHandle) {
        self.run(self.driver().switch_to_window(tab.clone()));
    }

    /// The cookies that scripts can't see, too.
    pub(crate) fn cookies(&self) -> Vec<Cookie> {
        self.run(self.driver().get_all_cookies())
    }

    /// What a script answers. Fails where the page is just being left.
    pub(crate) fn try_script(&self, script: &str, args: &[Value]) -> WebDriverResult<Value> {
        let ran = self.driver().execute(script, args.to_vec());
        RUNTIME.block_on(ran).map(|answer| answer.json().clone())
    }

    /// What a script answers, once it can run.
    pub(crate) fn script(&self, script: &str) -> Value {
        self.until("a page with scripts", || self.try_script(script, &[]).ok())
    }

    /// What a script says that has to wait; it calls its last argument with that.
    pub(crate) fn slow_script(&self, script: &str) -> Value {
        let ran = self.run(self.driver().execute_async(script, Vec::new()));
        ran.json().clone()
    }

    /// A command of the DevTools protocol.
    pub(crate) fn devtools(&self, method: &str, parameters: Value) -> Value {
        self.run(self.driver().cdp().send_raw(method, parameters))
    }

    /// The text that is shown.
    pub(crate) fn text(&self) -> String {
        let shown = self.try_script("return document.body.innerText", &[]);
        shown.ok().and_then(|text| Some(text.as_str()?.to_owned())).unwrap_or_default()
    }

    /// Waits until something holds, which `what` names.
    pub(crate) fn until<T>(&self, what: &str, holds: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = holds() {
                return found;
            }
            assert!(Instant::now() < deadline, "not yet: {what}\n{}", self.shown());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All there is to see, for whoever has to find out what is wrong.
    fn shown(&self) -> String {
        let inputs = "return [...document.querySelectorAll('dialog[open] input:not([type=hidden])')].map((it) => `${it.name}=${it.value}`)";
        let inputs = self.try_script(inputs, &[]).unwrap_or_default();
        format!("{}\n{}\n{inputs}", self.url(), self.text())
    }

    /// Waits until this is shown.
    #[track_caller]
    pub(crate) fn sees(&self, text: &str) {
        self.until(text, || self.text().contains(text).then_some(()));
    }

    /// Whether a button or link is there.
    pub(crate) fn offers(&self, name: &str) -> bool {
        let found = self.until("a page", || self.try_script(BY_NAME, &[json!(name)]).ok());
        !found.is_null()
    }

    /// The element that a script finds.
    async fn found(&self, script: &str, name: &str) -> WebDriverResult<WebElement> {
        self.driver().execute(script, vec![json!(name)]).await?.element()
    }

    /// Presses a button, a link or the head of a fold. Where that leads to another page, it is there afterwards.
    #[track_caller]
    pub(crate) fn press(&self, name: &str) {
        // It may be renewed between the two.
        let press = async || {
            let it = self.found(BY_NAME, name).await?;
            let leaves = self.driver().execute(LEAVES, vec![it.to_json()?]).await?;
            it.click().await?;
            Ok::<_, WebDriverError>(leaves.json() == true)
        };
        if self.until(&format!("[{name}]"), || RUNTIME.block_on(press()).ok()) {
            self.until(&format!("what [{name}] leads to"), || {
                let there = self.try_script(
                    "return window.left === undefined && document.readyState === 'complete'",
                    &[],
                );
                there.is_ok_and(|there| there == true).then_some(())
            });
        }
    }

    /// Ticks a box, or unticks it.
    pub(crate) fn tick(&self, label: &str) {
        let press = async || self.found(BY_LABEL, label).await?.click().await;
        self.until(label, || RUNTIME.block_on(press()).ok());
    }

    /// Types into an input, in place of what stands there.
    #[track_caller]
    pub(crate) fn fill(&self, label: &str, text: &str) {
        let fill = async || {
            let input = self.found(BY_LABEL, label).await?;
            input.clear().await?;
            input.send_keys(text).await
        };
        self.until(label, || RUNTIME.block_on(fill()).ok());
    }

    /// Chooses what is shown as this.
    pub(crate) fn choose(&self, label: &str, option: &str) {
        let choose = async || {
            let select = self.found(BY_LABEL, label).await?;
            let option = format!("./option[normalize-space()='{option}']");
            select.find(By::XPath(option)).await?.click().await
        };
        self.until(label, || RUNTIME.block_on(choose()).ok());
    }

    /// Types to whatever has the focus.
    pub(crate) fn keys(&self, keys: impl Into<TypingData>) {
        let typed = self.driver().action_chain().send_keys(keys);
        self.run(typed.perform());
    }

    /// Presses Enter. chromedriver's own keys are pressed again where the first time has led to another page.
    pub(crate) fn enter(&self) {
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { "\r" } else { "" };
            let key = json!({
                "type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": text,
            });
            self.devtools("Input.dispatchKeyEvent", key);
        }
    }

    /// What is called so that the focus is on it: its text, or its label.
    pub(crate) fn focused(&self) -> String {
        let focused = self.script(
            "const it = document.activeElement; return it.labels?.[0]?.textContent ?? it.textContent",
        );
        focused.as_str().unwrap().replace('*', "").trim().to_owned()
    }

    /// What stands in an input.
    pub(crate) fn value(&self, label: &str) -> String {
        let value = async || self.found(BY_LABEL, label).await?.prop("value").await;
        self.until(label, || RUNTIME.block_on(value()).ok().flatten())
    }

    /// The title of the dialog that is open.
    pub(crate) fn dialog(&self) -> Option<String> {
        let title = "return document.querySelector('dialog[open] h2')?.textContent ?? null";
        self.script(title).as_str().map(str::to_owned)
    }

    /// The document as it stands now.
    pub(crate) fn source(&self) -> String {
        self.run(self.driver().source())
    }

    /// How many elements are of this kind (CSS).
    pub(crate) fn count(&self, selector: &str) -> u64 {
        let count = self.try_script(
            "return document.querySelectorAll(arguments[0]).length",
            &[json!(selector)],
        );
        count.ok().and_then(|count| count.as_u64()).unwrap_or_default()
    }

    /// Marks the page; one that is loaded again has no mark.
    pub(crate) fn marks(&self) {
        self.script("window.marked = true");
    }

    pub(crate) fn is_marked(&self) -> bool {
        self.script("return window.marked === true") == true
    }

    /// What is said to be wrong beside the input with this label.
    #[track_caller]
    pub(crate) fn wrong(&self, label: &str) -> String {
        let told = r#"
            const input = (function () { FIND })(arguments[0]);
            if (input?.getAttribute("aria-invalid") !== "true") return null;
            const ids = (input.getAttribute("aria-describedby") ?? "").split(" ");
            return ids.map((id) => document.getElementById(id)).filter((it) => it?.querySelector("[role=alert]"))
                .map((it) => it.innerText).join("\n");
        "#;
        let told = told.replace("FIND", BY_LABEL);
        self.until(&format!("what is wrong with {label}"), || {
            let told = self.try_script(&told, &[json!(label)]).ok()?;
            Some(told.as_str()?.to_owned())
        })
    }

    /// What the browser holds against pages since it was asked last: violations of the content security policy, errors of scripts.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let log = self.run(self.driver().browser_log()).into_iter();
        // A page that refuses answers with an error status, which the browser notes as one of the network.
        let log = log.filter(|entry| entry.source.as_deref() != Some("network"));
        log.filter(|entry| entry.level == "SEVERE").map(|entry| entry.message).collect()
    }
}

impl Drop for Browser {
    /// Ends it, also when the test has failed. A test that has not may not have left complaints.
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let complaints = if failed { Vec::new() } else { self.complaints() };
        if let Some(driver) = self.driver.take() {
            let _ = RUNTIME.block_on(driver.quit());
        }
        assert!(complaints.is_empty(), "the browser complains: {complaints:#?}");
    }
}
