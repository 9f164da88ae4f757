//! Figures, in SVG. Each says in words what it shows; colours stand in the style sheet.

use admin_api::{CredentialLife, VersionCount};
use maud::{Markup, html};

/// How many kinds of segments the style sheet has colours for.
const COLOURS: usize = 5;

/// Which versions of which master keys wrap how many keys: a bar, and what its segments are.
pub(crate) fn versions(counts: &[VersionCount]) -> Markup {
    let mut counts: Vec<&VersionCount> = counts.iter().filter(|count| count.keys > 0).collect();
    // The newest first; what is wrapped locally last.
    counts.sort_by_key(|count| (count.kind == "local", std::cmp::Reverse(count.version)));
    let total: u64 = counts.iter().map(|count| count.keys).sum();
    if total == 0 {
        return html! {};
    }
    let width = |keys: u64| keys as f64 * 100.0 / total as f64;
    let named = |count: &VersionCount| match count.kind.as_str() {
        "local" => "wrapped locally".to_owned(),
        _ => format!("version {} of {}", count.version, count.master_key),
    };
    let class = |at: usize, count: &VersionCount| match count.kind.as_str() {
        "local" => "segment local".to_owned(),
        _ => format!("segment v{}", at.min(COLOURS - 1)),
    };
    let mut from = 0.0;
    let segments = counts.iter().enumerate().map(|(at, count)| {
        let (x, wide) = (from, width(count.keys));
        from += wide;
        html! {
            rect class=(class(at, count)) x=(format!("{x:.3}")) y="0" width=(format!("{wide:.3}")) height="10" {}
        }
    });
    let told: Vec<String> =
        counts.iter().map(|count| format!("{} on {}", count.keys, named(count))).collect();
    html! {
        figure.versions {
            svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label={ "Keys by version: " (told.join(", ")) } {
                @for segment in segments { (segment) }
            }
            figcaption {
                ul.legend {
                    @for (at, count) in counts.iter().enumerate() {
                        li {
                            svg viewBox="0 0 10 10" aria-hidden="true" { rect class=(class(at, count)) width="10" height="10" {} }
                            (words::count(count.keys, "key")) " " (if count.kind == "local" { "" } else { "on " }) (named(count))
                        }
                    }
                }
            }
        }
    }
}

/// How long a credential lives: a gauge whose steps are an hour, a day, a week and 32 days.
pub(crate) fn life(life: &CredentialLife) -> Markup {
    const STEPS: [(u64, &str); 4] =
        [(3600, "1 hour"), (86_400, "1 day"), (7 * 86_400, "1 week"), (32 * 86_400, "32 days")];
    let Some(seconds) = life.seconds_left else {
        return html! { p.gauge-says { "The token never ends." } };
    };
    // From a minute on, each step of the scale is as wide as the next.
    let place = |seconds: u64| {
        let (least, most) = (60_f64.ln(), (32.0 * 86_400_f64).ln());
        let at = (seconds.max(60) as f64).ln();
        ((at - least) / (most - least) * 100.0).clamp(0.0, 100.0)
    };
    let class = match seconds {
        _ if life.periodic => "fill good",
        0..86_400 => "fill bad",
        86_400..604_800 => "fill poor",
        _ => "fill good",
    };
    let wide = place(seconds);
    html! {
        figure.gauge {
            svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label={ "Life of the token: " (words::span(seconds)) " left" } {
                rect.track x="0" y="0" width="100" height="10" {}
                rect class=(class) x="0" y="0" width=(format!("{wide:.2}")) height="10" {}
                @for (step, _) in STEPS {
                    rect.step x=(format!("{:.2}", place(step) - 0.15)) y="0" width="0.3" height="10" {}
                }
            }
            figcaption {
                (words::span(seconds)) " left"
                span.scale { " on a scale up to 32 days; the steps are an hour, a day and a week" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(kind: &str, version: u64, keys: u64) -> VersionCount {
        VersionCount {
            kind: kind.into(),
            base_url: String::new(),
            transit_path: String::new(),
            namespace: None,
            master_key: "k".into(),
            version,
            keys,
            canary: false,
        }
    }

    #[test]
    fn the_bar_is_as_wide_as_its_segments_and_says_what_they_are() {
        let told = versions(&[count("local", 0, 1), count("vault", 1, 1), count("vault", 2, 2)]);
        let told = told.into_string();
        assert!(told.contains(
            "Keys by version: 2 on version 2 of k, 1 on version 1 of k, 1 on wrapped locally"
        ));
        assert!(told.contains("x=\"0.000\" y=\"0\" width=\"50.000\""), "{told}");
        assert!(told.contains("x=\"75.000\" y=\"0\" width=\"25.000\""), "{told}");
        assert!(versions(&[count("vault", 1, 0)]).into_string().is_empty());
    }

    #[test]
    fn the_gauge_is_full_at_32_days_and_empty_at_the_end() {
        let life = |seconds_left| {
            let life = CredentialLife {
                seconds_left,
                renewable: true,
                periodic: false,
                told_seconds_ago: 0,
            };
            super::life(&life).into_string()
        };
        assert!(life(Some(0)).contains("class=\"fill bad\" x=\"0\" y=\"0\" width=\"0.00\""));
        assert!(life(Some(40 * 86_400)).contains("width=\"100.00\""));
        assert!(life(None).contains("never ends"));
    }
}
