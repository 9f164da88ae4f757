//! Dialogs and their inputs. What was typed is kept when it is refused, and what is wrong stands beside it.

use std::collections::HashMap;

use admin_api::Problem;
use maud::{Markup, html};

use crate::page::Viewer;
use crate::parts::problem;

/// What was sent with a form, and why it was refused.
#[derive(Debug, Clone, Default)]
pub struct Form {
    typed: HashMap<String, String>,
    refused: Option<Problem>,
    field: Option<&'static str>,
}

impl Form {
    /// One whose inputs have these values.
    pub fn with(typed: HashMap<String, String>) -> Self {
        Self { typed, refused: None, field: None }
    }

    /// Refused, because of what stands in `field` if one input is the cause.
    #[must_use]
    pub fn refused(mut self, why: Problem, field: Option<&'static str>) -> Self {
        (self.refused, self.field) = (Some(why), field);
        self
    }

    /// What stands in the input with this name; empty if nothing does.
    pub fn value(&self, name: &str) -> &str {
        self.typed.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Whether the box with this name is ticked.
    pub fn is_ticked(&self, name: &str) -> bool {
        self.typed.contains_key(name)
    }

    /// Whether it was refused with this code.
    pub(crate) fn is_refused_as(&self, code: &str) -> bool {
        self.refused.as_ref().is_some_and(|why| why.code == code)
    }

    /// Puts a value where nothing was typed.
    pub(crate) fn or(mut self, name: &str, value: &str) -> Self {
        self.typed.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        self
    }

    /// Whether what to do about its refusal is given with an option, as it is called on the command line.
    pub(crate) fn takes_an_option(&self) -> bool {
        let cure = self.refused.as_ref().and_then(|why| why.cure.as_deref());
        cure.is_some_and(|cure| cure.contains("--"))
    }

    /// Why it was refused, unless that stands beside an input.
    pub(crate) fn problem(&self) -> Markup {
        html! {
            @if let (Some(why), None) = (&self.refused, self.field) { (problem(why)) }
        }
    }

    fn of(&self, name: &str) -> Option<&Problem> {
        self.refused.as_ref().filter(|_| self.field == Some(name))
    }
}

/// The forms of a page. The one that was refused is shown open; the others are as nobody has touched them.
#[derive(Debug, Clone, Default)]
pub struct Forms {
    open: Option<(&'static str, Form)>,
}

impl Forms {
    /// With this dialog open.
    pub const fn open(id: &'static str, form: Form) -> Self {
        Self { open: Some((id, form)) }
    }

    /// The dialog's form, and whether it is open.
    pub(crate) fn get(&self, id: &str) -> (Form, bool) {
        match &self.open {
            Some((open, form)) if *open == id => (form.clone(), true),
            _ => (Form::default(), false),
        }
    }
}

/// A dialog. It is opened by a button of [`opener`], or by the script if it is `open`.
pub(crate) fn dialog(id: &str, title: &str, open: bool, body: &Markup) -> Markup {
    html! {
        dialog id=(id) aria-labelledby={ (id) "-title" } data-open[open] {
            h2 id={ (id) "-title" } { (title) }
            // What the page itself has to say, which nobody sees behind a dialog.
            p.of-page role="status" {}
            (body)
        }
    }
}

/// A button that opens a dialog.
pub(crate) fn opener(id: &str, label: &str, class: &str) -> Markup {
    html! { button type="button" class=(class) data-opens=(id) aria-haspopup="dialog" { (label) } }
}

/// A form that asks the node to do something.
pub(crate) fn post(action: &str, viewer: &Viewer<'_>, body: &Markup) -> Markup {
    html! {
        form method="post" action=(action) {
            input type="hidden" name="csrf" value=(viewer.csrf);
            (body)
        }
    }
}

/// A button that asks the node to do something by itself.
pub(crate) fn act(action: &str, label: &str, class: &str, viewer: &Viewer<'_>) -> Markup {
    post(action, viewer, &html! { button type="submit" class=(class) { (label) } })
}

/// The last line of a dialog: leave it, or do it.
pub(crate) fn decide(leave: &str, act: &str, class: &str) -> Markup {
    decision(leave, act, class, false)
}

/// As [`decide`], with the focus on leaving when the dialog opens: what stands above it changes what is done.
pub(crate) fn decide_with_care(leave: &str, act: &str, class: &str) -> Markup {
    decision(leave, act, class, true)
}

fn decision(leave: &str, act: &str, class: &str, leaves_first: bool) -> Markup {
    html! {
        div.buttons {
            button type="button" data-closes autofocus[leaves_first] { (leave) }
            button type="submit" class=(class) { (act) }
        }
    }
}

/// An input, what it is for, and what is wrong with it.
pub(crate) struct Input<'a> {
    pub(crate) name: &'static str,
    pub(crate) label: &'a str,
    pub(crate) hint: &'a str,
    pub(crate) kind: Kind,
    pub(crate) required: bool,
    pub(crate) first: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Line,
    /// Never filled by the node, and not offered again.
    Secret,
    /// Several lines, such as a certificate.
    Text,
    /// Both.
    SecretText,
}

impl<'a> Input<'a> {
    pub(crate) const fn new(name: &'static str, label: &'a str, hint: &'a str) -> Self {
        Self { name, label, hint, kind: Kind::Line, required: false, first: false }
    }

    pub(crate) const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// It has the focus when its dialog opens, whatever stands above it.
    pub(crate) const fn first(mut self) -> Self {
        self.first = true;
        self
    }

    pub(crate) const fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// It in the form of the dialog with this id.
    pub(crate) fn show(&self, dialog: &str, form: &Form) -> Markup {
        let Self { name, label, hint, kind, required, first } = self;
        // A secret that was typed is not sent back, and left out it would not be what was meant: the form says that it was there.
        let again = format!("again-{name}");
        let is_secret = matches!(kind, Kind::Secret | Kind::SecretText);
        let typed_before =
            is_secret && !(form.value(name).is_empty() && form.value(&again).is_empty());
        let hint = match typed_before {
            true => &"Type it again: what was typed is not kept in a page.",
            false => hint,
        };
        let id = format!("{dialog}-{name}");
        let wrong = form.of(name);
        let (hint_id, error_id) = (format!("{id}-hint"), format!("{id}-error"));
        let told = [(!hint.is_empty()).then_some(&*hint_id), wrong.map(|_| &*error_id)];
        let told: Vec<&str> = told.into_iter().flatten().collect();
        let told = (!told.is_empty()).then(|| told.join(" "));
        let invalid = wrong.map(|_| "true");
        html! {
            div.input {
                label for=(id) { (label) @if *required { span.needed aria-hidden="true" { " *" } } }
                @if matches!(kind, Kind::Text | Kind::SecretText) {
                    textarea id=(id) name=(name) rows="4" spellcheck="false" required[*required] aria-describedby=[told] aria-invalid=[invalid] {
                        "\n" @if *kind == Kind::Text { (form.value(name)) }
                    }
                } @else {
                    input id=(id) name=(name) required[*required] aria-describedby=[told] aria-invalid=[invalid]
                        type=(if *kind == Kind::Secret { "password" } else { "text" })
                        value=[(*kind == Kind::Line).then(|| form.value(name))]
                        autocomplete=(if *kind == Kind::Secret { "new-password" } else { "off" })
                        autocapitalize="off" spellcheck="false" autofocus[*first];
                }
                @if typed_before { input type="hidden" name=(again) value="yes"; }
                @if !hint.is_empty() { p.hint id=(hint_id) { (hint) } }
                @if let Some(wrong) = wrong { div id=(error_id) { (problem(wrong)) } }
            }
        }
    }
}

/// A box to tick.
pub(crate) fn tick(dialog: &str, name: &str, label: &str, form: &Form) -> Markup {
    let (id, wrong) = (format!("{dialog}-{name}"), form.of(name));
    let error_id = format!("{id}-error");
    html! {
        div.tick {
            input type="checkbox" id=(id) name=(name) value="yes" checked[form.is_ticked(name)]
                aria-describedby=[wrong.map(|_| &error_id)] aria-invalid=[wrong.map(|_| "true")];
            label for=(id) { (label) }
        }
        @if let Some(wrong) = wrong { div id=(error_id) { (problem(wrong)) } }
    }
}

#[cfg(test)]
mod tests {
    use admin_api::Exit;

    use super::*;

    fn typed(name: &str, value: &str) -> Form {
        Form::with(HashMap::from([(name.to_owned(), value.to_owned())]))
    }

    #[test]
    fn what_was_typed_is_kept_and_what_is_wrong_stands_beside_it() {
        let why = Problem::new(Exit::Usage, "invalid", "no", "that is no URL");
        let form = typed("url", "htp://\"x").refused(why, Some("url"));
        let shown = Input::new("url", "URL", "").show("d", &form).into_string();
        assert!(shown.contains("value=\"htp://&quot;x\"") && shown.contains("that is no URL"));
        assert!(
            shown.contains("aria-describedby=\"d-url-error\"")
                && shown.contains("id=\"d-url-error\"")
        );
        assert!(form.problem().into_string().is_empty(), "it is said once");
    }

    #[test]
    fn a_secret_is_never_sent_back() {
        let form = typed("token", "s.canary");
        for kind in [Kind::Secret, Kind::SecretText] {
            let input = Input::new("token", "API token", "").kind(kind);
            let shown = input.show("d", &form).into_string();
            assert!(!shown.contains("canary"));
            // Left out, the stored one would be kept in its place.
            assert!(shown.contains("name=\"again-token\"") && shown.contains("Type it again"));
            let once_more = input.show("d", &typed("again-token", "yes")).into_string();
            assert!(once_more.contains("name=\"again-token\""), "{once_more}");
        }
    }

    #[test]
    fn only_the_dialog_that_was_refused_is_open() {
        let forms = Forms::open("a", typed("x", "1"));
        assert_eq!((forms.get("a").1, forms.get("b").1), (true, false));
        assert_eq!(forms.get("b").0.value("x"), "");
    }
}
