//! `fs kms check`: what is missing, what is too much, and what will end.

use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::node::Place;
use serde_json::{Value, json};

fn outcome_of<'a>(check: &'a Value, code: &str) -> &'a str {
    let items = check["items"].as_array().unwrap();
    let item = items.iter().find(|item| item["code"] == code);
    item.unwrap_or_else(|| panic!("no {code} in {check}"))["outcome"].as_str().unwrap()
}

#[test]
fn a_check_names_what_is_missing_and_what_is_too_much() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let _node = place.start();
        place.fails(5, &["fs", "kms", "check"]);
        let periodic = json!({ "period": "1h", "no_parent": true });
        let token = kms.admin().token("coffer-test", &policy(KEY), &periodic);
        place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
        place.ok(&["fs", "create", "home"]);
        let text = place.ok(&["fs", "kms", "check"]);
        assert!(text.ends_with("all is well\n"), "{kind:?}: {text}");

        // What Vault does not tell was not proved.
        let silent = json!({ "period": "1h", "no_parent": true, "no_default_policy": true });
        let about_itself = "path \"auth/token/lookup-self\" { capabilities = [\"read\"] }\n\
                            path \"auth/token/renew-self\" { capabilities = [\"update\"] }\n";
        let silent =
            kms.admin().token("silent", &format!("{}{about_itself}", policy(KEY)), &silent);
        place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &silent]);
        let text = place.ok(&["fs", "kms", "check"]);
        let end = "what could be looked at is well; 1 thing is unknown, and so not proved\n";
        assert!(text.contains("unknown  ") && text.ends_with(end), "{kind:?}: {text}");
        place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);

        // Permissions that change afterwards.
        let with = |lines: &str| {
            let policy = json!({ "policy": format!("{}{lines}", policy(KEY)) });
            kms.admin().write("sys/policies/acl/coffer-test", &policy);
        };
        with(&format!("path \"transit/keys/{KEY}\" {{ capabilities = [\"read\", \"delete\"] }}\n"));
        kms.configure(&json!({ "deletion_allowed": true }));
        let warned = place.json(&["fs", "kms", "check"]);
        assert_eq!(outcome_of(&warned, "excess"), "warning", "{kind:?}: {warned}");
        assert_eq!(outcome_of(&warned, "key-deletable"), "warning", "{kind:?}: {warned}");
        assert_eq!(outcome_of(&warned, "same-key"), "passed");
        let lacking: String = policy(KEY)
            .lines()
            .filter(|line| !line.contains("rewrap"))
            .collect::<Vec<_>>()
            .join("\n");
        kms.admin().write("sys/policies/acl/coffer-test", &json!({ "policy": lacking }));
        let refused = place.coffer(&["fs", "kms", "check"]).expect(4);
        assert!(
            refused.stdout.contains("FAILED   the token may update transit/rewrap/"),
            "{refused:?}"
        );
        assert!(refused.stdout.contains("do:  add to a policy of the token"), "{refused:?}");
        assert!(!refused.stdout.contains(&token));
        // No look tries it, so none says that it is well.
        let shown = place.ok(&["fs", "kms"]);
        let falls_short = "answers, but does not do all that Coffer needs";
        assert!(shown.contains(falls_short) && shown.contains("transit/rewrap/"), "{shown}");
        assert!(place.ok(&["status"]).contains(falls_short), "{kind:?}");
        assert!(place.metrics().contains("\ncoffer_kms_up 0\n"), "{}", place.metrics());
        let told = place.fails(4, &["fs", "kms", "check", "--json"]);
        let told: Value = serde_json::from_str(&told).unwrap();
        assert!(told["detail"].to_string().contains("transit/rewrap/"), "{told}");

        with("");
        place.ok(&["fs", "kms", "check"]);
        assert!(place.ok(&["fs", "kms"]).contains("state:            answers\n"), "{kind:?}");
        assert!(place.metrics().contains("\ncoffer_kms_up 1\n"), "{}", place.metrics());
        for _ in 0..2 {
            kms.rotate();
        }
        kms.configure(&json!({ "min_decryption_version": 2 }));
        let cut_off = place.coffer(&["fs", "kms", "check", "--json"]).expect(4);
        let check: Value = serde_json::from_str(&cut_off.stdout).unwrap();
        assert_eq!(outcome_of(&check, "keys-cut-off"), "failed", "{kind:?}: {check}");
        drop(kms);
        let away = place.coffer(&["fs", "kms", "check"]).expect(3);
        assert!(away.stdout.starts_with("FAILED   Vault answers at"), "{away:?}");
    }
}
