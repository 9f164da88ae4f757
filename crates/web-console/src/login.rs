//! The way in.

use admin_api::Problem;
use maud::{Markup, html};

use crate::parts::problem;

/// Where a one-time code opens a session. The script fills in the one of a link, which stands behind `#` so that it never travels in an
/// address.
pub fn login(refused: Option<&Problem>) -> Markup {
    html! {
        @if let Some(refused) = refused { (problem(refused)) }
        p { "On the node's machine, " code { "coffer console" } " prints a link with a code that opens a session, once and within a minute." }
        form #login method="post" action="/login" {
            div.input {
                label for="code" { "Code" }
                input #code name="code" type="password" required autocomplete="off" autocapitalize="off" spellcheck="false" autofocus;
            }
            div.buttons { button.main type="submit" { "Open the console" } }
        }
    }
}
