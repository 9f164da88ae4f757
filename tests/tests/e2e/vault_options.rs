//! What `set-vault` can be told of a Vault: where transit is mounted, whose certificates count, which namespace.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::mtls::MutualTls;
use coffer_tests::node::Place;
use serde_json::json;
use testkit::tree;
use testkit::vault_server::{NEWEST, TlsFiles, VaultServer};

#[test]
fn transit_may_be_mounted_elsewhere() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let (mount, key) = ("teams/storage/transit", "at-another-mount");
        kms.admin().write(&format!("sys/mounts/{mount}"), &json!({ "type": "transit" }));
        kms.admin().write(&format!("{mount}/keys/{key}"), &json!({}));
        let node = place.start();
        // What the command prints is all that the token may do.
        let policy = place.ok(&["fs", "kms", "policy", key, "--transit-path", mount]);
        let token = kms.token_for(&policy);
        let set = ["fs", "kms", "set-vault", kms.url(), key, &token];
        let refused = place.fails(4, &set);
        assert!(refused.contains("transit/keys/at-another-mount"), "{kind:?}: {refused}");
        place.ok(&[&set[..], &["--transit-path", mount]].concat());
        place.ok(&["fs", "create", "home"]);
        node.stop();

        let _node = place.start();
        place.wait_for_state("home", "unlocked");
        kms.admin().write(&format!("{mount}/keys/{key}/rotate"), &json!({}));
        place.ok(&["fs", "kms", "rewrap"]);
        let shown = place.json(&["fs", "kms"]);
        assert_eq!(shown["configured"]["transit_path"], mount, "{kind:?}: {shown}");
        assert_eq!(shown["keys"][0]["version"], 2, "{kind:?}: {shown}");
        // The copy in the backing directory knows it too.
        let copy = fs::read_to_string(place.state().join("filesystems/home/coffer.key")).unwrap();
        assert!(copy.contains(mount), "{kind:?}: {copy}");
    }
}

#[test]
fn a_private_ca_is_needed_is_enough_and_is_kept() {
    let place = Place::new();
    let issue = |name: &str| {
        let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let (certificate, key) =
            (place.path(&format!("{name}.pem")), place.path(&format!("{name}.key")));
        fs::write(&certificate, issued.cert.pem()).unwrap();
        fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
        (certificate, key)
    };
    let ((ca, key), (stranger, _)) = (issue("ca"), issue("stranger"));
    let server = VaultServer::start_tls(
        &VaultServer::program(NEWEST),
        TlsFiles { certificate: &ca, key: &key, clients: None },
    );
    let admin = server.admin();
    admin.mount_transit();
    admin.write(&format!("transit/keys/{KEY}"), &json!({}));
    let token = admin.token("coffer-test", &policy(KEY), &json!({ "period": "1h" }));
    let node = place.start();

    let set = |ca: &[&str]| {
        place.coffer(&[&["fs", "kms", "set-vault", server.url(), KEY, &token], ca].concat())
    };
    for wrong in [&[][..], &["--ca-cert", stranger.to_str().unwrap()]] {
        let refused = set(wrong).expect(3).stderr;
        assert!(refused.contains("certificate") && refused.contains("--ca-cert"), "{refused}");
        assert!(place.json(&["fs", "kms"])["configured"].is_null());
    }
    for no_ca in [&key, &place.path("missing.pem")] {
        let refused = set(&["--ca-cert", no_ca.to_str().unwrap()]);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(place.json(&["fs", "kms"])["configured"].is_null());
    }
    // What is stored with every wrapped key has its limit; just below it all goes well.
    let bundle = |name: &str, size: usize| {
        let (stranger, ca) =
            (fs::read_to_string(&stranger).unwrap(), fs::read_to_string(&ca).unwrap());
        let (path, strangers) = (place.path(name), (size - ca.len()) / stranger.len());
        fs::write(&path, format!("{}{ca}", stranger.repeat(strangers))).unwrap();
        path.to_str().unwrap().to_owned()
    };
    for size in [34_000, 60_000, 70_000, 250_000] {
        let refused = set(&["--ca-cert", &bundle("bundle.pem", size)]).expect(2).stderr;
        assert!(refused.contains("32 KiB") && refused.contains("only"), "{refused}");
        let key = key.to_str().unwrap();
        let client = ["--client-cert", &bundle("bundle.pem", size), "--client-key", key];
        let refused = set(&client).expect(2).stderr;
        assert!(refused.contains("32 KiB") && refused.contains("only"), "{refused}");
        assert!(place.json(&["fs", "kms"])["configured"].is_null());
    }
    set(&["--ca-cert", &bundle("bundle.pem", 31_500)]).expect(0);
    assert!(place.ok(&["fs", "kms"]).contains("--ca-cert"), "it is shown that it was given");
    place.ok(&["fs", "create", "home"]);
    node.stop();

    // The certificate is kept, not the file's name.
    fs::remove_file(place.path("bundle.pem")).unwrap();
    let node = place.start();
    place.wait_for_state("home", "unlocked");
    let source = place.path("source");
    tree::small_files(&source, 3).unwrap();
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    node.stop();
    let (state, from) = (place.state(), place.state().join("filesystems"));
    let [state, from] = [&state, &from].map(|path| path.to_str().unwrap());
    place.ok(&["recover", "--from", from, "--state-dir", state]);
}

#[test]
fn a_client_certificate_that_ends_is_told_everywhere() {
    const EXPIRES: &str = "client-certificate-expires";
    let place = Place::new();
    let vault = MutualTls::start(&place);
    let token = vault.token();
    let node = place.start();
    let client = |name: &str, days| {
        let paths = [place.path(&format!("{name}.pem")), place.path(&format!("{name}.key"))];
        for (path, pem) in paths.iter().zip(vault.client(days)) {
            fs::write(path, pem).unwrap();
        }
        paths.map(|path| path.to_str().unwrap().to_owned())
    };
    let set = |certificate: &str, key: &str| {
        let set = ["fs", "kms", "set-vault", vault.server.url(), KEY, &token, "--json"];
        let ca = ["--ca-cert", vault.ca.to_str().unwrap()];
        let client = ["--client-cert", certificate, "--client-key", key];
        place.coffer(&[&set[..], &ca, &client].concat())
    };

    let [over, over_key] = client("over", -1);
    let refused = set(&over, &over_key).expect(3).stderr;
    assert!(refused.contains("the client certificate any more: it ended at"), "{refused}");
    assert!(refused.contains("set-vault … --client-cert"), "{refused}");
    let [late, late_key] = client("late", 100);
    let refused = set(&late, &over_key).expect(2).stderr;
    assert!(refused.contains("the client key is not that of the client certificate"), "{refused}");

    assert!(!set(&late, &late_key).expect(0).stdout.contains(EXPIRES));
    let rehearsed = place.json(&["fs", "kms", "rehearse"]);
    assert_eq!(rehearsed["until"]["what"], "the client certificate", "{rehearsed}");

    let [soon, soon_key] = client("soon", 10);
    assert!(set(&soon, &soon_key).expect(0).stdout.contains(EXPIRES));
    place.until("it is in the audit log", || {
        place.ok(&["audit", "show", "--action", "kms.warning"]).contains(EXPIRES)
    });
    assert!(place.metrics().contains(&format!("coffer_findings{{code=\"{EXPIRES}\"}} 1")));
    for command in [&["status"][..], &["fs", "kms"], &["fs", "kms", "check"]] {
        let shown = place.ok(&[command, &["--json"]].concat());
        assert!(shown.contains(EXPIRES) && shown.contains("it ends in 9 days"), "{shown}");
    }
    let rehearsed = place.ok(&["fs", "kms", "rehearse"]);
    assert!(rehearsed.contains("until the client certificate ends, in 9 days"), "{rehearsed}");
    node.stop();
}

#[test]
fn a_namespace_goes_with_every_request() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let token = kms.token();
    let node = place.start();
    let (seen, url) = record(kms.url());
    place.ok(&["fs", "kms", "set-vault", &url, KEY, &token]);
    assert!(requests(&seen).iter().all(|head| !head.contains("x-vault-namespace")));

    // Another way there: on the first one a look at the KMS can still be under way.
    let (seen, url) = record(kms.url());
    place.ok(&["fs", "kms", "set-vault", &url, KEY, &token, "--namespace", "admin/storage"]);
    place.ok(&["fs", "create", "home"]);
    kms.rotate();
    place.ok(&["fs", "kms", "rewrap"]);
    assert_eq!(place.json(&["fs", "kms"])["configured"]["namespace"], "admin/storage");
    node.stop();
    let _node = place.start();
    place.wait_for_state("home", "unlocked");

    let requests = requests(&seen);
    for path in ["keys/", "encrypt/", "decrypt/", "rewrap/"].map(|verb| format!("transit/{verb}")) {
        assert!(requests.iter().any(|head| head.contains(&path)), "no {path} in {requests:#?}");
    }
    assert!(requests.iter().any(|head| head.contains("lookup-self")), "{requests:#?}");
    for head in requests {
        assert!(head.contains("x-vault-namespace: admin/storage\r\n"), "{head}");
    }
}

/// All that was sent, each connection by itself.
type Sent = Arc<Mutex<Vec<Arc<Mutex<Vec<u8>>>>>>;

/// Stands before a server and keeps what it is sent.
fn record(url: &str) -> (Sent, String) {
    let server = url.strip_prefix("http://").unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Sent::default();
    let all = Arc::clone(&sent);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
            let (mut answers, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let kept = Arc::default();
            all.lock().unwrap().push(Arc::clone(&kept));
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut answers, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            std::thread::spawn(move || {
                let mut part = [0; 4096];
                while let Ok(len @ 1..) = client.read(&mut part) {
                    kept.lock().unwrap().extend_from_slice(&part[..len]);
                    if server.write_all(&part[..len]).is_err() {
                        break;
                    }
                }
                let _ = server.shutdown(Shutdown::Both);
            });
        }
    });
    (sent, format!("http://{address}"))
}

/// The heads of the requests: line and headers, without tokens, in small letters.
fn requests(sent: &Sent) -> Vec<String> {
    const VERSION: &str = " HTTP/1.1\r\n";
    let mut heads = Vec::new();
    for connection in sent.lock().unwrap().iter() {
        let text = String::from_utf8(connection.lock().unwrap().clone()).unwrap();
        let mut line = text.as_str();
        while let Some((before, after)) = line.split_once(VERSION) {
            let headers = after.split_once("\r\n\r\n").map_or(after, |(headers, _)| headers);
            let path = before.rsplit(' ').next().unwrap();
            let headers = headers.to_lowercase() + "\r\n";
            let shown = headers.split_inclusive("\r\n").filter(|h| !h.starts_with("x-vault-token"));
            heads.push(format!("{path}\r\n{}", shown.collect::<String>()));
            line = after;
        }
    }
    assert!(!heads.is_empty(), "nothing was sent");
    heads
}
