//! The console of a node, opened by its link as a person opens it.

use std::ops::Deref;

use coffer_tests::node::Place;

use crate::browser::Browser;

/// A browser in which a session is open.
pub(crate) struct Console {
    browser: Browser,
    origin: String,
}

impl Deref for Console {
    type Target = Browser;

    fn deref(&self) -> &Browser {
        &self.browser
    }
}

impl Console {
    /// One in which everything can be done.
    pub(crate) fn open(place: &Place) -> Self {
        Self::with(place, &["console"])
    }

    /// One in which everything can be looked at.
    pub(crate) fn look(place: &Place) -> Self {
        Self::with(place, &["console", "--read-only"])
    }

    fn with(place: &Place, command: &[&str]) -> Self {
        let link = place.ok(command);
        let (origin, _) = link.split_once("/login#").expect("a link");
        let console = Self { browser: Browser::start(), origin: origin.to_owned() };
        console.goto(link.trim());
        console.sees("Running jobs");
        console
    }

    /// Opens another session in the same browser, which leads to the page that was wanted.
    pub(crate) fn log_in(&self, place: &Place) {
        let link = place.ok(&["console"]);
        self.goto(link.trim());
        self.until("a session", || (!self.url().contains("/login")).then_some(()));
        self.sees("Log out");
    }

    /// The same after the node came again, at another port.
    pub(crate) fn log_in_anew(&mut self, place: &Place) {
        let link = place.ok(&["console"]);
        link.split_once("/login#").unwrap().0.clone_into(&mut self.origin);
        self.goto(link.trim());
        self.sees("Running jobs");
    }

    /// Where it is, such as `http://127.0.0.1:1234`.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Sets the KMS in the dialog.
    pub(crate) fn set_kms(&self, url: &str, key: &str, token: &str) {
        self.type_kms(url, key, token);
        self.press("Update");
        self.sees("Update KMS");
    }

    /// Opens the dialog that sets a KMS where none is set, and types into it.
    pub(crate) fn type_kms(&self, url: &str, key: &str, token: &str) {
        self.page("/kms");
        self.press("Configure KMS");
        self.fill("URL", url);
        self.fill("Key name", key);
        self.fill("API token", token);
    }

    /// Opens a page of it.
    pub(crate) fn page(&self, path: &str) {
        self.goto(&format!("{}{path}", self.origin));
    }
}
