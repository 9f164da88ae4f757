//! The policy that a token needs, and the commands that apply it.

use std::collections::BTreeMap;

use kms_core::{KmsConfig, KmsConfigId, KmsError, Policy};

use crate::config::{KIND, VaultConfig};

/// The policy for a token that these master keys are for, which all lie where `settings` say; and what applies it and makes a token
/// under it. Asks nobody.
///
/// # Errors
/// [`kms_core::KmsErrorKind::Invalid`], with what is wrong and what would be right.
pub fn policy(
    master_keys: &[String],
    settings: &BTreeMap<String, String>,
) -> Result<Policy, KmsError> {
    let mut text = String::new();
    for master_key in master_keys {
        let config = VaultConfig::parse(&KmsConfig {
            id: KmsConfigId::random(),
            kind: KIND.to_owned(),
            // A policy holds at any address; it is never asked.
            address: "https://localhost".to_owned(),
            master_key: master_key.clone(),
            settings: settings.clone(),
        })?;
        // What a token needs for itself it needs once.
        for line in config.policy().lines() {
            if !text.lines().any(|known| known == line) {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    let mounted = match settings.get("transit_path") {
        Some(path) => format!(" --transit-path {path}"),
        None => String::new(),
    };
    let keys = master_keys.join(" ");
    let commands = vec![
        format!("coffer fs kms policy {keys}{mounted} | vault policy write coffer -"),
        "vault write auth/token/roles/coffer allowed_policies=coffer period=768h orphan=true"
            .to_owned(),
        "vault token create -role=coffer -field=token > token".to_owned(),
    ];
    Ok(Policy { text, commands })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_token_needs_for_itself_stands_once() {
        let settings = [("transit_path".to_owned(), "team/transit".to_owned())].into();
        let Policy { text, commands } =
            policy(&["a".to_owned(), "b".to_owned()], &settings).unwrap();
        for (line, times) in [
            ("path \"team/transit/decrypt/a\" ", 1),
            ("path \"team/transit/decrypt/b\" ", 1),
            ("path \"auth/token/lookup-self\" ", 1),
        ] {
            assert_eq!(text.matches(line).count(), times, "{text}");
        }
        assert!(commands[0].contains("policy a b --transit-path team/transit |"), "{commands:?}");
        for wrong in ["", "a/b", "a;b"] {
            policy(&["a".to_owned(), wrong.to_owned()], &settings).unwrap_err();
        }
    }
}
