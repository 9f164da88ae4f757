//! How much may be given: a configuration lies in a record of the key store and beside each wrapped key in a backing directory,
//! what shows who we are lies in another record, and each of these takes 64 KiB.

use kms_core::{
    Auth, Credential, ExposeSecret as _, KmsConfig, KmsError, KmsErrorKind, KmsInput, Login,
};

/// Longest list of certificates, and the longest one together with its key.
const CERTIFICATES_MAX: usize = 32 * 1024;

/// Longest token, secret id, or URL. Service tokens have about a hundred bytes, batch tokens a few hundred.
const TEXT_MAX: usize = 16 * 1024;

/// Refuses what could not be stored, before anybody is asked.
///
/// # Errors
/// [`KmsErrorKind::Invalid`].
pub(crate) fn check(config: &KmsConfig, credential: &Credential) -> Result<(), KmsError> {
    let ca = config.settings.get("ca_cert").map_or(0, |pem| recorded(pem));
    within(
        KmsInput::Setting("ca_cert"),
        ca,
        CERTIFICATES_MAX,
        "the CA certificates",
        "give only that of the CA that signs Vault's certificate (--ca-cert), not a bundle of all authorities",
    )?;
    let identity = credential.identity.as_ref();
    let identity =
        identity.map_or(0, |own| recorded(&own.certificate) + recorded(own.key.expose_secret()));
    within(
        KmsInput::Identity,
        identity,
        CERTIFICATES_MAX,
        "the client certificate and its key",
        "give only the client's certificate and those between it and its CA (--client-cert), not a bundle",
    )?;
    let text = match &credential.auth {
        Auth::Token(token) => recorded(token.expose_secret()),
        Auth::Login(Login { path, id, secret }) => {
            recorded(path) + recorded(id) + recorded(secret.expose_secret())
        }
        _ => 0,
    };
    within(
        KmsInput::Auth,
        text,
        TEXT_MAX,
        "the token, or the role id and the secret id,",
        "give what Vault gave, and nothing else",
    )?;
    let url = recorded(&config.address);
    within(KmsInput::Address, url, TEXT_MAX, "the Vault URL", "give Vault's base URL")
}

fn within(
    input: KmsInput,
    size: usize,
    most: usize,
    what: &str,
    cure: &str,
) -> Result<(), KmsError> {
    if size <= most {
        return Ok(());
    }
    let (size, most) = (size.div_ceil(1024), most / 1024);
    let why = format!("{what} take {size} KiB, and {most} KiB are the most");
    Err(KmsError::new(KmsErrorKind::Invalid, why).of_input(input).cure(cure))
}

/// The bytes of a text in JSON. Counted, so that no copy of a secret is made.
fn recorded(text: &str) -> usize {
    let escaped = |c: char| match c {
        '"' | '\\' | '\n' | '\r' | '\t' => 2,
        c if c.is_ascii_control() => 6,
        c => c.len_utf8(),
    };
    text.chars().map(escaped).sum()
}

#[cfg(test)]
mod tests {
    use kms_core::{ClientIdentity, KmsConfigId};

    use super::*;

    fn refusal(ca: &str, address: &str, credential: &Credential) -> Option<String> {
        let config = KmsConfig {
            id: KmsConfigId::random(),
            kind: crate::KIND.to_owned(),
            address: address.to_owned(),
            master_key: "k".to_owned(),
            settings: [("ca_cert".to_owned(), ca.to_owned())].into(),
        };
        let error = check(&config, credential).err()?;
        assert_eq!(error.kind(), KmsErrorKind::Invalid);
        Some(format!("{error}; {}", error.how_to_mend().unwrap()))
    }

    #[test]
    fn what_could_not_be_stored_is_refused() {
        let (url, token) = ("https://v", Credential::token("t"));
        let most = "x".repeat(CERTIFICATES_MAX);
        assert_eq!(refusal(&most, url, &token), None);
        let refused = refusal(&format!("{most}x"), url, &token).unwrap();
        assert!(
            refused
                .starts_with("the CA certificates take 33 KiB, and 32 KiB are the most; give only"),
            "{refused}"
        );
        let lines = "\n".repeat(CERTIFICATES_MAX / 2 + 1);
        assert!(refusal(&lines, url, &token).is_some());

        let identity = |certificate: &str| {
            let identity =
                ClientIdentity { certificate: certificate.to_owned(), key: "secret".into() };
            Credential { identity: Some(identity), ..Credential::token("t") }
        };
        assert_eq!(refusal("", url, &identity(&most[6..])), None);
        let refused = refusal("", url, &identity(&most[5..])).unwrap();
        assert!(refused.contains("client certificate") && !refused.contains("secret"), "{refused}");

        let long = "x".repeat(TEXT_MAX + 1);
        assert!(refusal("", url, &Credential::token(long.as_str())).is_some());
        assert!(refusal("", &long, &token).is_some());
    }

    #[test]
    fn sizes_are_those_of_json() {
        let text: String =
            (0..300_u32).filter_map(char::from_u32).filter(|c| *c != '\u{7f}').collect();
        // serde_json has short forms of two more.
        assert_eq!(recorded(&text), serde_json::to_string(&text).unwrap().len() - 2 + 2 * 4);
    }
}
