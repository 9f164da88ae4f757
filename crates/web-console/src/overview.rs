//! Whether all is well.

use admin_api::{Jobs, Status};
use maud::{Markup, html};

use crate::jobs::unfinished;
use crate::kms::behind;
use crate::page::Viewer;
use crate::parts::{fields, findings, live, mark, problem};
use crate::picture;

/// The node at a glance.
pub fn overview(status: &Status, jobs: &Jobs, viewer: &Viewer<'_>) -> Markup {
    let kms = &status.kms;
    let configured = kms.configured.as_ref();
    let wrong = configured.and_then(|kms| kms.problem.as_ref());
    let alerts = kms.findings.len()
        + status.findings.len()
        + usize::from(wrong.is_some())
        + usize::from(behind(kms).is_some());
    let count = &status.filesystems;
    let body = html! {
        section aria-labelledby="alerts" {
            h2 #alerts { "Alerts" }
            @if configured.is_none() {
                div.alert.warning data-code="kms-not-set" {
                    p { strong { "Warning: " } "no KMS is set: keys would lie beside the data that they encrypt" }
                    p.cure { strong { "Do: " } a href="/kms" { "configure one" } }
                }
            } @else if alerts == 0 && count.locked == 0 {
                p.well { (mark("good", "All is well")) }
            }
            @if let Some(wrong) = wrong { (problem(wrong)) }
            @if let Some(behind) = behind(kms) { (behind) }
            (findings(kms.findings.iter().chain(&status.findings)))
            @if count.locked > 0 {
                div.alert.warning data-code="filesystems-locked" {
                    p {
                        strong { "Warning: " }
                        (words::count(count.locked, "filesystem")) " locked"
                    }
                    p.cure { strong { "Do: " } a href="/filesystems?state=locked" { "see which, and why" } }
                }
            }
        }
        div.cards {
            section.card aria-labelledby="kms" {
                h2 #kms { "KMS" }
                p { (words::kms_line(kms)) }
                @if let Some(life) = configured.and_then(|kms| kms.credential.as_ref()) { (picture::life(life)) }
                p { a href="/kms" { @if configured.is_some() { "KMS Configuration" } @else { "Configure a KMS" } } }
            }
            section.card aria-labelledby="keys" {
                h2 #keys { "Keys by version" }
                p { (words::versions(&kms.keys)) }
                (picture::versions(&kms.keys))
            }
            section.card aria-labelledby="filesystems" {
                h2 #filesystems { "Filesystems" }
                dl.figures {
                    (figure("in all", count.total, "plain"))
                    (figure("unlocked", count.unlocked, "good"))
                    (figure("locked", count.locked, if count.locked > 0 { "bad" } else { "plain" }))
                    @if count.unlocking > 0 { (figure("being unlocked", count.unlocking, "poor")) }
                    @if count.deleting > 0 { (figure("half deleted", count.deleting, "poor")) }
                    (figure("exposed", count.exposed, if count.exposed > 0 { "bad" } else { "plain" }))
                }
                p { a href="/filesystems" { "Filesystems" } }
            }
            section.card aria-labelledby="jobs" {
                h2 #jobs { "Running jobs" }
                (unfinished(jobs, viewer))
                p { a href="/jobs" { "Jobs" } }
            }
        }
        section aria-labelledby="node" {
            h2 #node { "Node" }
            (fields(&words::status(status), viewer))
        }
    };
    live("overview", &body)
}

fn figure(name: &str, number: u64, kind: &str) -> Markup {
    html! { div class={ "figure " (kind) } { dt { (name) } dd { (number) } } }
}
