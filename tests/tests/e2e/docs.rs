//! What the documentation claims about the code.

use std::fs;
use std::path::{Path, PathBuf};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
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

#[test]
fn links_between_documents_lead_somewhere() {
    let mut pages = vec![project().join("README.md")];
    pages.extend(fs::read_dir(project().join("docs")).unwrap().map(|e| e.unwrap().path()));
    let mut followed = 0;
    for page in pages.iter().filter(|page| page.extension().is_some_and(|e| e == "md")) {
        let text = fs::read_to_string(page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") || link.starts_with('#') {
                continue;
            }
            let target = link.split('#').next().unwrap();
            let path = page.parent().unwrap().join(target);
            assert!(path.exists(), "{} links to {link}", page.display());
            followed += 1;
        }
    }
    assert!(followed > 10, "{followed}");
}
