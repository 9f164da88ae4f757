//! The audit log.

use admin_api::{AuditChain, AuditPage};
use maud::{Markup, html};

use crate::form::act;
use crate::page::Viewer;
use crate::parts::{At, Row, ago, lines, live, mark, table};

/// What of the log is looked for.
#[derive(Debug, Clone, Default)]
pub struct AuditQuery {
    /// Only this action, or what begins with it.
    pub action: String,
    /// Only what is about this.
    pub subject: String,
    /// Only what was refused or failed.
    pub failed: bool,
    /// Only lines before this one.
    pub before: Option<u64>,
}

/// Lines that fit, the newest first, and the state of the chain.
pub fn audit(
    page: &AuditPage,
    chain: Option<&At<AuditChain>>,
    query: &AuditQuery,
    viewer: &Viewer<'_>,
) -> Markup {
    let numbers: Vec<String> = page.lines.iter().map(|line| line.seq.to_string()).collect();
    let rows: Vec<Row<'_>> = page
        .lines
        .iter()
        .zip(&numbers)
        .rev()
        .map(|(line, number)| {
            let outcome = match line.outcome.as_str() {
                "done" => "good",
                "begun" => "plain",
                _ => "bad",
            };
            let cells = vec![
                html! { (number) },
                ago(line.at, viewer),
                html! { code { (line.action) } },
                html! { (line.subject) },
                mark(outcome, &line.outcome),
                html! { (lines(&words::audit_more(line))) },
            ];
            (number.as_str(), cells)
        })
        .collect();
    html! {
        section #chain data-live aria-labelledby="chain-title" {
            h2 #chain-title { "The chain" }
            p { "Each line has the hash of the one before it, so that none can be changed or left out unnoticed." }
            @if let Some(At { at, it }) = chain { (followed(*at, it, viewer)) }
            @if viewer.may_change { (act("/audit/verify", "Follow the chain now", "", viewer)) }
        }
        section aria-labelledby="lines" {
            h2 #lines { "Lines" }
            form.search method="get" action="/audit" role="search" {
                div.input {
                    label for="subject" { "About" }
                    input #subject name="subject" value=(query.subject) autocomplete="off" spellcheck="false" aria-describedby="subject-hint";
                    p.hint #subject-hint { "A filesystem, a key's id, a path" }
                }
                div.input {
                    label for="action" { "Action" }
                    input #action name="action" value=(query.action) autocomplete="off" spellcheck="false" aria-describedby="action-hint";
                    p.hint #action-hint { "Such as key.unwrap or kms" }
                }
                div.tick {
                    input #failed type="checkbox" name="failed" value="true" checked[query.failed];
                    label for="failed" { "Only what was refused or failed" }
                }
                button type="submit" { "Search" }
            }
            (live("log", &html! {
                @if rows.is_empty() { p { "No line fits." } }
                @else { (table("Audit log", &["Line", "Time", "Action", "Subject", "Outcome", "More"], &rows)) }
                div.pages {
                    @if query.before.is_some() { (turn(query, None, "Newest")) }
                    @if let Some(before) = page.before { (turn(query, Some(before), "Older")) }
                }
            }))
        }
    }
}

fn followed(at: u64, chain: &AuditChain, viewer: &Viewer<'_>) -> Markup {
    let state = match (&chain.trouble, &chain.unrecorded) {
        (None, None) => mark("good", "whole"),
        (None, Some(_)) => mark("bad", "not all is recorded"),
        (Some(_), _) => mark("bad", "NOT WHOLE"),
    };
    html! {
        p {
            (state) ", " (ago(at, viewer))
        }
        p.hash { (lines(&words::audit_chain(chain))) }
        @for why in [&chain.trouble, &chain.unrecorded].into_iter().flatten() {
            div.alert.error role="alert" { p { (lines(why)) } }
        }
    }
}

/// A button to another page of the same search.
fn turn(query: &AuditQuery, before: Option<u64>, label: &str) -> Markup {
    html! {
        form method="get" action="/audit" {
            input type="hidden" name="subject" value=(query.subject);
            input type="hidden" name="action" value=(query.action);
            @if query.failed { input type="hidden" name="failed" value="true"; }
            @if let Some(before) = before { input type="hidden" name="before" value=(before); }
            button.quiet type="submit" { (label) }
        }
    }
}
