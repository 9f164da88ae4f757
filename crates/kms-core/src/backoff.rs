//! How long to wait before a KMS that did not answer is asked again.

use std::time::Duration;

/// A random time between zero and `longest`, every one of them as likely (full jitter), so that many nodes and many requests that lost
/// one KMS do not come back all at once. Whoever tries again and again doubles `longest` up to a bound
/// ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015). There is no floor: what bounds the number of tries is their mean pause,
/// which is half of `longest`.
pub fn full_jitter(longest: Duration) -> Duration {
    // Without random bytes the longest pause is right.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    longest.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pause_is_as_likely() {
        const TAKEN: usize = 10_000;
        let longest = Duration::from_secs(1);
        let mut tenths = [0_usize; 10];
        for _ in 0..TAKEN {
            let pause = full_jitter(longest);
            assert!(pause <= longest, "{pause:?}");
            tenths[((pause.as_secs_f64() * 10.0) as usize).min(9)] += 1;
        }
        // A thousand in each, give or take 30; these bounds are seven times as far away.
        assert!(tenths.iter().all(|count| (790..=1210).contains(count)), "{tenths:?}");
        assert_eq!(full_jitter(Duration::ZERO), Duration::ZERO);
    }
}
