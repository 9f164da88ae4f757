//! What the documentation claims about the code.

use std::fs;
use std::path::{Path, PathBuf};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(project().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = docs.filter(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.chain([project().join("README.md")]).collect()
}

#[test]
fn requirements_name_tests_that_exist() {
    let text = fs::read_to_string(project().join("docs/requirements.md")).unwrap();
    let mut named = 0;
    for quoted in text.split('`').skip(1).step_by(2).filter(|q| q.contains(".rs")) {
        let (file, test) = quoted.split_once("::").unwrap_or((quoted, ""));
        let source = fs::read_to_string(project().join(file))
            .unwrap_or_else(|e| panic!("docs/requirements.md names {file}: {e}"));
        let is_there = test.is_empty() || source.contains(&format!("fn {test}()"));
        assert!(is_there, "docs/requirements.md names {quoted}, which is not there");
        named += 1;
    }
    assert!(named > 30, "{named}");
}

/// The page's sentences, each in the left column of a row, whose right one says what became of it. The product's name is left out there.
#[test]
fn every_sentence_of_the_page_is_answered() {
    let in_words = |text: &str| {
        let text = text.replace('`', "").replace("WekaIO ", "").replace("weka fs", "coffer fs");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let read = |name: &str| fs::read_to_string(project().join(name)).unwrap();
    let requirements = read("docs/requirements.md");
    let rows = requirements.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    let answered: Vec<String> = rows
        .filter(|(_, answer)| answer.trim_end_matches('|').trim().len() > 5)
        .map(|(sentence, _)| in_words(sentence))
        .collect();
    let page = read("tests/data/kms-management.txt");
    let sentences = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut held = 0;
    for sentence in sentences.map(in_words) {
        let is_answered = answered.iter().any(|row| row.contains(&sentence));
        assert!(is_answered, "docs/requirements.md has no row for: {sentence}");
        held += 1;
    }
    assert!(held > 80, "{held}");
}

/// Each command about KMS, filesystems, jobs and the audit log has its place in the console, and the manual says which.
#[test]
fn every_command_has_its_place_in_the_console() {
    let manual = fs::read_to_string(project().join("docs/administration.md")).unwrap();
    let usages = manual.split("```usage\n").skip(1).filter_map(|text| text.split("```").next());
    let is_word = |word: &&str| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    let commands = usages.flat_map(str::lines).map(|usage| {
        let words = usage.split(' ').take_while(|word| is_word(word) && !word.starts_with('-'));
        words.collect::<Vec<_>>().join(" ")
    });
    let about = ["coffer status", "coffer fs ", "coffer job ", "coffer audit "];
    let console = manual.split("| command | in the console |").nth(1).unwrap();
    let table = console.split("\n\n").next().unwrap();
    let mut held = 0;
    for command in commands.filter(|command| about.iter().any(|it| command.starts_with(it))) {
        let named = table.contains(&format!("`{command}`"));
        assert!(named, "the console has no place for {command}");
        held += 1;
    }
    assert!(held >= 20, "{held}");
}

/// What a document calls by a path in the repository, or in `crates/`, is there. What a build makes is there after it only.
#[test]
fn paths_in_documents_are_there() {
    let crates = project().join("crates");
    let is_part = |name: &str| {
        !["", "target"].contains(&name)
            && (crates.join(name).is_dir() || project().join(name).is_dir())
    };
    let mut named = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for quoted in text.split('`').skip(1).step_by(2).filter(|q| !q.contains([' ', '\n'])) {
            let path = quoted.split("::").next().unwrap();
            let is_source = path.ends_with(".rs");
            assert!(!is_source || path.contains('/'), "{}: where is {quoted}?", page.display());
            let of_ours = path.split_once('/').is_some_and(|(first, _)| is_part(first));
            if is_source || of_ours {
                let is_there = crates.join(path).exists() || project().join(path).exists();
                assert!(is_there, "{} names {quoted}, which is not there", page.display());
                named += 1;
            }
        }
    }
    assert!(named > 100, "{named}");
}

/// What a source calls the codes of its problems: the second argument of `Problem::new`, and the words of `fn code`.
fn codes_in(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]").next().unwrap();
    let word = |text: &str| {
        let text = text.trim().strip_prefix('"')?.split('"').next()?;
        text.chars().all(|c| c.is_ascii_lowercase() || c == '-').then(|| text.to_owned())
    };
    let of_problems =
        source.split("Problem::new(").skip(1).filter_map(|call| call.split(',').nth(1));
    let of_errors = source.split("fn code").skip(1).flat_map(|text| {
        let body = text.split("\n    }\n").next().unwrap_or_default();
        body.lines().filter_map(|line| line.split("=> ").nth(1))
    });
    let of_locks = source.split(" code: ").skip(1);
    of_problems.chain(of_errors).chain(of_locks).filter_map(word).collect()
}

#[test]
fn the_codes_of_problems_are_told() {
    let crates = project().join("crates");
    let mut sources = vec!["kms-core/src/error.rs".into(), "coffer/src/rehearse.rs".into()];
    let places = [
        "daemon/src",
        "daemon/src/api",
        "daemon/src/console",
        "daemon/src/jobs",
        "key-manager/src",
    ];
    for of in places {
        let files = fs::read_dir(crates.join(of)).unwrap().map(|file| file.unwrap().file_name());
        sources.extend(files.map(|file| Path::new(of).join(file)));
    }
    // What keeps a node from starting is no answer.
    let starts = ["daemon/src/lib.rs", "daemon/src/socket.rs"].map(PathBuf::from);
    let sources = sources.into_iter().filter(|source| !starts.contains(source));
    let sources = sources.filter(|source| source.extension().is_some_and(|it| it == "rs"));
    let sources: Vec<String> =
        sources.map(|source| fs::read_to_string(crates.join(source)).unwrap()).collect();
    let used: Vec<String> = sources.iter().flat_map(|source| codes_in(source)).collect();
    assert!(used.len() > 50, "{used:?}");
    for code in &used {
        let is_told = admin_api::CODES.iter().any(|told| told.code == code);
        assert!(is_told, "crates/admin-api/src/code.rs does not have {code}");
    }
    let page = fs::read_to_string(project().join("docs/api.md")).unwrap();
    for told in admin_api::CODES {
        let is_used = sources.iter().any(|source| source.contains(&format!("\"{}\"", told.code)));
        assert!(is_used, "nothing answers {}", told.code);
        let status = told.status.map(|status| format!(" {status}")).unwrap_or_default();
        let row = format!("| `{}` |{status} | {} | {} |", told.code, told.exit.code(), told.what);
        assert!(page.lines().any(|line| line == row), "docs/api.md has no row {row}");
    }
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, admin_api::CODES.len(), "docs/api.md has others");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut followed = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (target, heading) = link.split_once('#').unwrap_or((link, ""));
            let to =
                if target.is_empty() { page.clone() } else { page.parent().unwrap().join(target) };
            assert!(to.exists(), "{} links to {link}", page.display());
            let is_there =
                heading.is_empty() || anchors(&to).iter().any(|anchor| anchor == heading);
            assert!(is_there, "{} links to {link}, a heading that is not there", page.display());
            followed += 1;
        }
    }
    assert!(followed > 40, "{followed}");
}

/// What a page's headings are called in links, as GitHub makes it of them.
fn anchors(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    let anchor = |heading: &str| -> String {
        let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        words.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
    };
    headings.map(anchor).collect()
}
