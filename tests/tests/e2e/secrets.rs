//! Canaries: what is secret appears nowhere that it was not put.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coffer_tests::kms::{KEY, Kind, Kms};
use coffer_tests::node::Place;
use serde_json::{Value, json};
use testkit::tree;

const TEXT: &str = "canary-in-the-content-of-a-file";
const NAME: &str = "canary-in-the-name-of-a-file";

#[test]
fn nothing_readable_lies_in_the_state_directory() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir_all(source.join(format!("{NAME}-dir"))).unwrap();
    fs::write(source.join(NAME), TEXT.repeat(1000)).unwrap();
    fs::write(source.join(format!("{NAME}-dir")).join(NAME), TEXT).unwrap();
    std::os::unix::fs::symlink(NAME, source.join("link")).unwrap();
    let node = place.start();
    place.set_vault(&kms);
    let token = fs::read_to_string(place.path("token")).unwrap();
    place.ok(&["fs", "create", "home"]);
    // What jobs could not do, and why they failed, names files too.
    let _socket = UnixListener::bind(source.join(format!("{NAME}-socket"))).unwrap();
    let source = source.to_str().unwrap();
    let skipped = place.ok(&["fs", "import", "home", source]);
    assert!(skipped.contains(&format!("{NAME}-socket")), "{skipped}");
    damage_one(&place.state().join("filesystems/home/root"));
    let damaged = place.coffer(&["fs", "verify", "home"]).expect(6);
    assert!(damaged.stdout.contains(NAME), "{damaged:?}");
    place.coffer(&["fs", "export", "home", source]).expect(5);
    kms.rotate();
    place.ok(&["fs", "kms", "rewrap"]);
    // What the node and its commands say holds no secret either.
    let mut said = String::new();
    for args in [&["fs", "kms"][..], &["fs", "show", "home"], &["status"], &["job", "list"]] {
        for json in [true, false] {
            let mut args = args.to_vec();
            if json {
                args.push("--json");
            }
            said.push_str(&place.ok(&args));
        }
    }
    said.push_str(&place.metrics());
    said.push_str(&place.ok(&["audit", "show", "--json"]));
    let wrong = place.coffer(&["fs", "kms", "set-vault", kms.url(), KEY, "hvs.canary-token"]);
    said.push_str(&wrong.stderr);
    // Debug logging is where secrets slip out.
    node.stop();
    said.push_str(&place.log());
    assert!(!said.contains(&token) && !said.contains("hvs.canary-token"), "{said}");

    for file in all_files(&place.state()) {
        let bytes = fs::read(&file).unwrap();
        let shown = file.display().to_string();
        assert!(!shown.contains(NAME), "{shown}");
        for canary in [TEXT, NAME] {
            assert!(!contains(&bytes, canary.as_bytes()), "{canary} lies in {shown}");
        }
        // The token is kept in the store alone, which its owner alone can read.
        let in_store = file.starts_with(place.state().join("store"));
        assert!(in_store || !contains(&bytes, token.as_bytes()), "the token lies in {shown}");
        let in_tree = file.starts_with(place.state().join("filesystems"));
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert!(in_tree || mode & 0o077 == 0, "{shown} has mode {mode:o}");
    }
    let mode = fs::metadata(place.state()).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "the state directory is its owner's alone");
}

/// What the node stores can't rebuild a key of the KMS, since it never sees one. Vault gives this one away to its root,
/// so that the test knows what to look for.
#[test]
fn the_master_key_lies_nowhere() {
    let (kms, place) = (Kms::start(Kind::Newest), Place::new());
    kms.configure(&json!({ "exportable": true }));
    let source = place.path("source");
    tree::small_files(&source, 20).unwrap();
    let node = place.start();
    place.set_vault(&kms);
    let backing = place.path("backing");
    place.ok(&["fs", "create", "home"]);
    place.ok(&["fs", "create", "projects", "--backing", backing.to_str().unwrap()]);
    place.ok(&["fs", "import", "projects", source.to_str().unwrap()]);
    kms.rotate();
    place.ok(&["fs", "kms", "rewrap"]);
    node.stop();
    let node = place.start();
    place.wait_for_state("projects", "unlocked");
    node.stop();

    let exported = kms.admin().read(&format!("transit/export/encryption-key/{KEY}"));
    let keys = exported["data"]["keys"].as_object().unwrap();
    assert_eq!(keys.len(), 2, "{keys:?}");
    let mut forms = Vec::new();
    for key in keys.values().map(|key| key.as_str().unwrap()) {
        let raw = STANDARD.decode(key).unwrap();
        assert_eq!(raw.len(), 32);
        let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        let unpadded = key.trim_end_matches('=').to_owned();
        let of_urls = unpadded.replace('+', "-").replace('/', "_");
        forms.extend([raw, hex.to_uppercase().into_bytes(), hex.into_bytes()]);
        forms.extend([unpadded.into_bytes(), of_urls.into_bytes()]);
    }
    let lies_in = |secret: &[u8], dir: &Path| {
        let files = all_files(dir).into_iter();
        files.filter(|file| contains(&fs::read(file).unwrap(), secret)).collect::<Vec<_>>()
    };
    let token = fs::read(place.path("token")).unwrap();
    assert!(!lies_in(&token, &place.state()).is_empty(), "this search finds what is there");
    for form in forms {
        for dir in [place.state(), backing.clone()] {
            assert_eq!(lies_in(&form, &dir), Vec::<std::path::PathBuf>::new());
        }
        assert!(!contains(place.log().as_bytes(), &form), "it is logged");
    }
}

#[test]
fn debug_logging_shows_no_secret() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let mut command = place.serve();
    let mut child = command.env("RUST_LOG", "trace").spawn().unwrap();
    assert!(place.wait_for_socket());
    place.set_vault(&kms);
    let token = fs::read_to_string(place.path("token")).unwrap();
    place.ok(&["fs", "create", "home"]);
    place.coffer(&["fs", "kms", "set-vault", kms.url(), KEY, "hvs.canary-token"]).expect(4);
    child.kill().unwrap();
    child.wait().unwrap();
    let log = place.log();
    assert!(!log.is_empty());
    assert!(!log.contains(&token) && !log.contains("hvs.canary-token"));
    assert!(!log.contains("plaintext\":\""), "a wrapped key's plaintext is logged");
}

#[test]
fn the_node_leaves_no_core_dump_and_its_socket_is_its_owner_s() {
    let place = Place::new();
    let node = place.start();
    let limits = fs::read_to_string(format!("/proc/{}/limits", node.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let mode = fs::metadata(place.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_locked_filesystem_s_key_is_nowhere_in_memory() {
    let kms = Kms::start(Kind::Newest);
    let place = Place::new();
    let source = place.path("source");
    tree::small_files(&source, 20).unwrap();
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    kms.rotate();
    place.ok(&["fs", "kms", "rewrap"]);
    place.ok(&["fs", "lock", "home"]);
    place.ok(&["fs", "unlock", "home"]);
    let key = key_of(&place, &kms);
    assert!(lies_in_memory(node.pid(), &key) >= 1, "this test finds a key that is in use");
    place.ok(&["fs", "lock", "home"]);
    assert_eq!(lies_in_memory(node.pid(), &key), 0);
    // As Vault answers it.
    assert_eq!(lies_in_memory(node.pid(), &base64_of(&key)), 0);
}

#[test]
fn a_core_dump_holds_no_key() {
    let kms = Kms::start(Kind::Newest);
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join(NAME), TEXT.repeat(1000)).unwrap();
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    kms.rotate();
    place.ok(&["fs", "kms", "rewrap"]);
    place.ok(&["fs", "lock", "home"]);
    place.ok(&["fs", "unlock", "home"]);
    place.ok(&["fs", "verify", "home"]);
    let key = key_of(&place, &kms);
    let token = fs::read(place.path("token")).unwrap();
    let core = core_of(node.pid());
    let lies_in_core = |secret: &[u8]| core.iter().any(|mapping| contains(mapping, secret));
    assert!(lies_in_core(&token), "the token is in use, and this test finds what is there");
    let secrets: [(&str, &[u8]); 4] = [
        ("the key", &key),
        ("the key in base64", &base64_of(&key)),
        ("the content of a file", TEXT.as_bytes()),
        ("the name of a file", NAME.as_bytes()),
    ];
    for (what, secret) in secrets {
        assert!(!lies_in_core(secret), "{what} would lie in a core dump");
    }
    // What is left, the token, would lie in none that keeps to the process's filter: it takes no mapping of any kind.
    let of_process = |name: &str| fs::read(format!("/proc/{}/{name}", node.pid())).unwrap();
    assert_eq!(of_process("coredump_filter"), b"00000000\n");
    for name in ["environ", "cmdline"] {
        assert!(!contains(&of_process(name), &token), "{name}");
    }
}

/// The end of the base64 of a key's record, 56 bytes of which the key begins where a group of three does. What comes after its
/// last whole group depends on nothing else.
fn base64_of(key: &[u8]) -> Vec<u8> {
    STANDARD.encode(key).trim_end_matches('=').as_bytes().to_owned()
}

/// What a core dump of a process would hold at most: all that it may write and has not kept out of dumps (`VmFlags: dd`, proc(5)).
/// The kernel writes none of this process, which has made itself undumpable, so the test copies what it would.
fn core_of(pid: u32) -> Vec<Vec<u8>> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("this test runs as root");
    let (mut core, mut range) = (Vec::new(), (0, 0));
    for line in smaps.lines() {
        let (first, rest) = line.split_once(' ').unwrap();
        if let Some((start, end)) = first.split_once('-') {
            let at = |text| u64::from_str_radix(text, 16).unwrap();
            range = (at(start), at(end));
        }
        let flags: Vec<_> = rest.split_whitespace().collect();
        if first == "VmFlags:" && flags.contains(&"wr") && !flags.contains(&"dd") {
            let mut bytes = vec![0; (range.1 - range.0) as usize];
            // Some, like what a device shows, can't be read.
            if memory.read_exact_at(&mut bytes, range.0).is_ok() {
                core.push(bytes);
            }
        }
    }
    core
}

/// The filesystem key of `home`, as its KMS opens it: the end of the record that is encrypted.
fn key_of(place: &Place, kms: &Kms) -> Vec<u8> {
    let header = fs::read(place.state().join("filesystems/home/coffer.key")).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    let wrapped = &header["wrapped"]["ciphertext"]["text"];
    let opened =
        kms.admin().write(&format!("transit/decrypt/{KEY}"), &json!({"ciphertext": wrapped}));
    let record = STANDARD.decode(opened["data"]["plaintext"].as_str().unwrap()).unwrap();
    record[record.len() - 32..].to_vec()
}

/// How often `secret` lies in what a process may write.
fn lies_in_memory(pid: u32, secret: &[u8]) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("this test runs as root");
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let at = |text| u64::from_str_radix(text, 16).unwrap();
        let mut bytes = vec![0; (at(end) - at(start)) as usize];
        // Some, like what a device shows, can't be read.
        if memory.read_exact_at(&mut bytes, at(start)).is_ok() {
            let alike = |window: &&[u8]| window[0] == secret[0] && *window == secret;
            found += bytes.windows(secret.len()).filter(alike).count();
        }
    }
    found
}

/// Alters a byte of the first block of a file.
fn damage_one(root: &Path) {
    let is_file = |file: &std::path::PathBuf| fs::metadata(file).unwrap().len() > 4096;
    let file = all_files(root).into_iter().find(is_file).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[4096] ^= 1;
    fs::write(file, bytes).unwrap();
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn all_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(all_files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}
