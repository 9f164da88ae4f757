//! How long tokens live.

use serde::{Deserialize, Serialize};

use crate::answer::Refusal;

/// Vault's default for `default_lease_ttl` and `max_lease_ttl`: 32 days.
pub(crate) const SYSTEM_TTL: u64 = 768 * 3600;

/// How long a token lives and can be made to live, in seconds; zero for unset.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Life {
    pub(crate) ttl: u64,
    pub(crate) period: u64,
    pub(crate) max_ttl: u64,
    pub(crate) explicit_max_ttl: u64,
}

impl Life {
    /// The seconds that a token gets now, when it is made or renewed, with a warning if that is less
    /// than was asked for. `issued` is when it was made.
    ///
    /// A period starts again at each renewal, for ever unless there is an explicit maximum; any other life
    /// ends when the maximum has passed since the token was made.
    pub(crate) fn grant(
        &self,
        increment: u64,
        issued: u64,
        now: u64,
    ) -> Result<(u64, Vec<String>), Refusal> {
        let set = |seconds: u64| (seconds > 0).then_some(seconds);
        let max_ttl = [set(self.max_ttl), set(self.explicit_max_ttl)].into_iter().flatten();
        let max_ttl = max_ttl.fold(SYSTEM_TTL, u64::min);
        let mut warnings = Vec::new();
        let (wanted, end) = if self.period > 0 {
            if self.period > max_ttl {
                warnings.push(format!(
                    "period of {:?} exceeded the effective max_ttl of {:?}; period value is capped accordingly",
                    words(self.period),
                    words(max_ttl)
                ));
            }
            (
                self.period.min(max_ttl),
                set(self.explicit_max_ttl).map(|max| issued.saturating_add(max)),
            )
        } else {
            let wanted = set(increment).or(set(self.ttl)).unwrap_or(SYSTEM_TTL);
            (wanted, Some(issued.saturating_add(max_ttl)))
        };
        let Some(end) = end else { return Ok((wanted, warnings)) };
        let left = end.saturating_sub(now);
        if left == 0 {
            return Err(Refusal::internal("past the max TTL, cannot renew"));
        }
        if wanted > left {
            warnings.push(format!(
                "TTL of {:?} exceeded the effective max_ttl of {:?}; TTL value is capped accordingly",
                words(wanted),
                words(left)
            ));
        }
        Ok((wanted.min(left), warnings))
    }
}

/// The lesser of two limits, where zero is no limit.
pub(crate) fn lesser(a: u64, b: u64) -> u64 {
    match (a, b) {
        (0, limit) | (limit, 0) => limit,
        (a, b) => a.min(b),
    }
}

/// A duration as Go prints it, without the parts that are zero: `768h`, `1h30m`, `59m59s`.
fn words(seconds: u64) -> String {
    let parts = [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    let words: String =
        parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if words.is_empty() { "0s".to_owned() } else { words }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    fn granted(life: Life, increment: u64, issued: u64, now: u64) -> u64 {
        life.grant(increment, issued, now).unwrap().0
    }

    #[test]
    fn a_period_starts_again_at_each_renewal() {
        let life = Life { period: HOUR, ttl: 7, ..Life::default() };
        assert_eq!(granted(life, 0, 0, 0), HOUR);
        assert_eq!(granted(life, 5, 0, 1000 * HOUR), HOUR);
    }

    #[test]
    fn an_explicit_maximum_ends_even_a_period() {
        let life = Life { period: HOUR, explicit_max_ttl: 90 * 60, ..Life::default() };
        assert_eq!(granted(life, 0, 0, 0), HOUR);
        assert_eq!(granted(life, 0, 0, HOUR), HOUR / 2);
        assert!(life.grant(0, 0, 2 * HOUR).is_err());
    }

    #[test]
    fn a_life_without_period_ends_at_the_maximum() {
        let life = Life { ttl: HOUR, max_ttl: 2 * HOUR, ..Life::default() };
        assert_eq!(granted(life, 0, 0, 0), HOUR);
        assert_eq!(granted(life, 3 * HOUR, 0, HOUR), HOUR);
        assert_eq!(granted(Life::default(), 0, 0, 0), SYSTEM_TTL);
        assert_eq!(granted(Life::default(), 0, 0, HOUR), SYSTEM_TTL - HOUR);
    }

    #[test]
    fn what_is_cut_short_is_said() {
        let life = Life { ttl: 1000 * HOUR, ..Life::default() };
        let (_, warnings) = life.grant(0, 0, 0).unwrap();
        assert_eq!(
            warnings,
            [
                "TTL of \"1000h\" exceeded the effective max_ttl of \"768h\"; TTL value is capped accordingly"
            ]
        );
        assert_eq!([words(0), words(5400), words(3599)], ["0s", "1h30m", "59m59s"]);
    }
}
