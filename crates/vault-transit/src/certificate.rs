//! When certificates end: Vault's, and the one that we show it. Moments are since 1970.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// With less of its life left a certificate should be renewed today.
pub(crate) const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// When this certificate in DER ends; `None` if it is none.
pub(crate) fn end(der: &[u8]) -> Option<Duration> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok().map(Duration::from_secs)
}

/// When the first of these certificates in PEM ends; `None` if there is none.
pub(crate) fn first_end(pem: &str) -> Option<Duration> {
    Pem::iter_from_buffer(pem.as_bytes()).filter_map(|block| end(&block.ok()?.contents)).min()
}

/// How long it is until then, by this machine's clock; zero once it is past.
pub(crate) fn left(end: Duration) -> Duration {
    end.saturating_sub(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// That moment in words, to the second, in UTC.
pub(crate) fn moment(end: Duration) -> String {
    let seconds = i64::try_from(end.as_secs()).unwrap_or(i64::MAX);
    match OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(at) => {
            let (hour, minute, second) = at.to_hms();
            format!("{} {hour:02}:{minute:02}:{second:02} UTC", at.date())
        }
        Err(_) => "a day that is far away".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_of_several_counts() {
        let issued = |year| {
            let mut params = rcgen::CertificateParams::default();
            params.not_after = rcgen::date_time_ymd(year, 3, 7);
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
        };
        let pem = format!("words\n{}{}", issued(2040), issued(2031));
        let end = first_end(&pem).unwrap();
        assert_eq!(moment(end), "2031-03-07 00:00:00 UTC");
        assert_eq!(first_end(&issued(2040)).map(moment).unwrap(), "2040-03-07 00:00:00 UTC");
        assert!(left(end) > Duration::ZERO);
        for none in ["", "words", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            assert_eq!(first_end(none), None, "{none}");
        }
        assert_eq!(moment(Duration::MAX), "a day that is far away");
    }
}
