//! The way in.

use admin_api::Problem;
use maud::{Markup, html};

use crate::parts::problem;

/// Where a one-time code opens a session. The script fills in the one of a link, which stands behind `#` so that it never travels in an
/// address. `next` is the page that was wanted, which then follows; empty, it is the overview.
pub fn login(refused: Option<&Problem>, next: &str) -> Markup {
    html! {
        @if let Some(refused) = refused {
            (problem(refused))
        } @else if !next.is_empty() {
            p.alert.warning { "No session is open, or it has ended: half an hour without use ends it. With a code you come back to the page where you were." }
        }
        p { "On the node's machine, " code { "coffer console" } " prints a link with a code that opens a session, once and within a minute." }
        form #login method="post" action="/login" {
            input type="hidden" name="next" value=(next);
            div.input {
                label for="code" { "Code" }
                input #code name="code" type="password" required autocomplete="off" autocapitalize="off" spellcheck="false" autofocus;
            }
            div.buttons { button.main type="submit" { "Open the console" } }
        }
    }
}
