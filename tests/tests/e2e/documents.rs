//! The commands of README.md and docs/, typed as they stand there to a node and a real Vault, and held against what
//! the program's help texts say. Which block is what: [`coffer_tests::document`].

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use coffer_tests::document::{Differences, Document, first_missing};
use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::{Place, program};
use testkit::tree;
use testkit::vault_server::{NEWEST, VaultServer};

const MANUAL: &str = "docs/administration.md";

#[test]
fn the_manual_is_one_sitting() {
    let (kms, place) = (Kms::start(Kind::Newest), Place::new());
    let documents = place.path("documents");
    tree::small_files(&documents, 50).unwrap();
    access_tomorrow(&documents);
    fs::write(place.path("token"), kms.token()).unwrap();
    Document::read(MANUAL).type_it(&Differences {
        place: &place,
        vault_url: kms.url(),
        vault_program: &VaultServer::program(NEWEST),
        environment: &[("VAULT_ADDR", kms.url()), ("VAULT_TOKEN", VaultServer::ROOT_TOKEN)],
    });
    assert_eq!(tree::differences(documents, place.path("restored")).unwrap(), Vec::<String>::new());
    assert!(place.path("man1/coffer-fs-kms-set-vault.1").exists());
}

/// The manual has `diff` read both trees, one after the other. A time of access that is yet to come is left as it is by
/// that (`relatime`, mount(8)), so that it can be compared too.
fn access_tomorrow(tree: &Path) {
    let times = FileTimes::new().set_accessed(SystemTime::now() + Duration::from_secs(24 * 3600));
    for entry in fs::read_dir(tree).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => access_tomorrow(&entry.path()),
            kind if kind.is_file() => File::open(entry.path()).unwrap().set_times(times).unwrap(),
            _ => {}
        }
    }
}

#[test]
fn the_first_five_minutes_are_as_the_readme_says() {
    let server = VaultServer::start(&VaultServer::program(NEWEST));
    let place = Place::new();
    tree::small_files(&place.path("projects"), 50).unwrap();
    Document::read("README.md").type_it(&Differences {
        place: &place,
        vault_url: server.url(),
        vault_program: &VaultServer::program(NEWEST),
        environment: &[("VAULT_ADDR", server.url()), ("VAULT_TOKEN", VaultServer::ROOT_TOKEN)],
    });
}

#[test]
fn the_first_look_is_as_the_help_says() {
    let help = Command::new(program()).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let look = help.lines().skip_while(|line| !line.starts_with("A first look")).skip(1);
    let look: Vec<&str> = look.take_while(|line| !line.is_empty()).map(str::trim).collect();
    assert!(look.len() > 4, "{help}");
    let place = Place::new();
    tree::small_files(&place.path("documents"), 50).unwrap();
    // The machine has one port 8200 and one state directory, which are not a test's.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let socket = place.socket();
    let typed = look
        .join("\n")
        .replace("http://127.0.0.1:8200", &format!("http://{port}"))
        .replace("dev vault", &format!("dev vault --listen {port}"))
        .replace("serve", &format!("serve --state-dir {}", place.state().display()));
    Document::of_commands("coffer --help", &typed).type_it(&Differences {
        place: &place,
        vault_url: "",
        vault_program: &VaultServer::program(NEWEST),
        environment: &[("COFFER_SOCKET", socket.to_str().unwrap())],
    });
}

#[test]
fn the_set_up_of_the_guide_leads_to_the_main_job() {
    let program = VaultServer::program(NEWEST);
    let server = VaultServer::start(&program);
    let place = Place::new();
    let node = place.start();
    Document::read("docs/vault.md").type_it(&Differences {
        place: &place,
        vault_url: server.url(),
        vault_program: &program,
        environment: &[
            ("VAULT_ADDR", server.url()),
            ("VAULT_TOKEN", VaultServer::ROOT_TOKEN),
            ("COFFER_SOCKET", place.socket().to_str().unwrap()),
        ],
    });

    let (source, target) = (place.path("source"), place.path("target"));
    tree::small_files(&source, 50).unwrap();
    place.ok(&["fs", "create", "home"]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    node.stop();
    let _node = place.start();
    place.wait_for_state("home", "unlocked");
    place.ok(&["fs", "export", "home", target.to_str().unwrap()]);
    assert_eq!(tree::differences(&source, &target).unwrap(), Vec::<String>::new());
    let shown = place.json(&["fs", "kms"]);
    assert_eq!(shown["configured"]["credential"]["periodic"], true, "{shown}");
}

#[test]
fn the_api_is_asked_as_its_document_says() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    fs::write(place.path("token"), kms.token()).unwrap();
    let node = place.start();
    Document::read("docs/api.md").type_it(&Differences {
        place: &place,
        vault_url: kms.url(),
        // It types none of its commands.
        vault_program: Path::new("/bin/true"),
        environment: &[("COFFER_SOCKET", place.socket().to_str().unwrap())],
    });
    node.stop();
}

#[test]
fn a_lost_state_directory_is_rebuilt_as_the_document_says() {
    let (kms, place) = (Kms::start(Kind::Newest), Place::new());
    let source = place.path("source");
    tree::small_files(&source, 50).unwrap();
    let node = place.start();
    place.set_vault(&kms);
    for fs in ["home", "projects"] {
        let backing = place.path(&format!("srv/coffer/{fs}"));
        place.ok(&["fs", "create", fs, "--backing", backing.to_str().unwrap()]);
        place.ok(&["fs", "import", fs, source.to_str().unwrap()]);
    }
    node.stop();
    fs::remove_dir_all(place.state()).unwrap();
    // The document's state directory is the default one, so nothing in it tells the commands of the socket.
    let socket = place.path("var/lib/coffer/coffer.sock");
    Document::read("docs/disaster-recovery.md").type_it(&Differences {
        place: &place,
        vault_url: kms.url(),
        vault_program: &VaultServer::program(NEWEST),
        environment: &[("COFFER_SOCKET", socket.to_str().unwrap())],
    });
}

#[test]
fn every_command_that_a_document_names_is_one() {
    let mut named = 0;
    for name in documents() {
        let document = Document::read(name);
        let blocks = document.blocks();
        let shown = blocks.iter().filter(|block| block.language == "usage");
        let shown = shown.flat_map(|block| &block.lines).map(String::as_str);
        // docs/formats.md has labels of keys that begin like that.
        let mentioned = document.mentioned().into_iter().filter(|c| !c.starts_with("coffer v1 "));
        for command in mentioned.chain(shown) {
            let words: Vec<&str> = command
                .split(['[', ']', '<', '>', '|', ' '])
                .filter(|word| !word.is_empty())
                .map(|word| match word {
                    "ADDR" => "127.0.0.1:8200",
                    "shell" => "bash",
                    "N" => "2",
                    word => word,
                })
                .collect();
            // Asked for help, the program judges the words before; only what is missing does not matter.
            let answer = Command::new(program()).args(&words[1..]).arg("--help").output().unwrap();
            let complained = String::from_utf8_lossy(&answer.stderr);
            assert!(answer.status.success(), "{name} has `{command}`: {complained}");
            named += 1;
        }
    }
    assert!(named >= 36, "{named}");
}

#[test]
fn the_manual_shows_every_command_with_all_its_options() {
    let blocks = Document::read(MANUAL).blocks();
    let shown: Vec<&String> = blocks
        .iter()
        .filter(|block| block.language == "usage" || block.language == "sh")
        .flat_map(|block| &block.lines)
        .collect();
    let mut commands = Vec::new();
    grammar(&[], &mut commands);
    assert!(commands.len() > 20, "{commands:?}");
    for (command, options) in commands {
        let line = |line: &&&String| {
            let rest = line.strip_prefix(&command);
            let is_it = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
            is_it && options.iter().all(|option| line.contains(option.as_str()))
        };
        assert!(shown.iter().any(|l| line(&l)), "{MANUAL} shows no `{command}` with {options:?}");
    }
}

#[test]
fn a_promise_is_kept_by_its_like_only() {
    let missing = |promises: &[&str], said| {
        let promises: Vec<String> = promises.iter().map(|&line| line.to_owned()).collect();
        first_missing(&promises, said).map(str::to_owned)
    };
    assert_eq!(missing(&["exposed: … yes…"], "home\nexposed:     yes; its key\n"), None);
    assert_eq!(missing(&["b", "a"], "a\nb\nc\na\n"), None);
    assert_eq!(missing(&["b", "a"], "a\nb\n").as_deref(), Some("a"), "their order counts");
    assert!(missing(&["KMS is not set"], "KMS is not set yet").is_some());
    assert!(missing(&["… not …"], "no").is_some());
}

/// Every command below this one, with its own options, as the help texts have them.
fn grammar(words: &[String], commands: &mut Vec<(String, BTreeSet<String>)>) {
    let answer = Command::new(program()).args(words).arg("--help").output().unwrap();
    let help = String::from_utf8(answer.stdout).unwrap();
    let section = |title: &'static str| {
        let lines = help.lines().skip_while(move |line| *line != title).skip(1);
        lines.take_while(|line| line.is_empty() || line.starts_with(' '))
    };
    let below = section("Commands:").take_while(|line| !line.is_empty());
    // What a long line goes on with stands further in.
    let below = below.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let below: Vec<&str> = below.filter(|word| !word.is_empty()).collect();
    if below.is_empty() || words.last().is_some_and(|word| word == "kms") {
        let options = section("Options:")
            .filter(|line| line.trim_start().starts_with('-'))
            .flat_map(|line| line.split([' ', ',']).filter(|word| word.starts_with("--")))
            .filter(|option| !["--help", "--version"].contains(option));
        commands
            .push((format!("coffer {}", words.join(" ")), options.map(str::to_owned).collect()));
    }
    for word in below.into_iter().filter(|word| *word != "help") {
        grammar(&[words, &[word.to_owned()]].concat(), commands);
    }
}

fn documents() -> Vec<&'static str> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs");
    let names = fs::read_dir(docs).unwrap().map(|entry| entry.unwrap().file_name());
    let pages = names.map(|name| format!("docs/{}", name.to_str().unwrap()));
    let pages = pages.filter(|name| name.ends_with(".md")).map(|name| &*name.leak());
    pages.chain(["README.md"]).collect()
}
