//! The fault matrix: what each command does in each state of the KMS. `docs/faults.md` says it, and here every cell of its
//! tables is run.

mod operations;
mod scene;
mod states;
mod table;
mod tls;
mod vault;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use operations::{OPERATIONS, Operation};
use scene::Scene;
use states::STATES;
use table::Table;
use vault::Vault;

macro_rules! states {
    ($($test:ident: $name:literal,)*) => {
        $(#[test]
        fn $test() {
            run($name);
        })*

        #[test]
        fn every_state_and_every_operation_has_its_cell() {
            let run = [$($name),*];
            assert_eq!(STATES.each_ref().map(|state| state.name), run, "every state is run");
            let operations: Vec<&str> = OPERATIONS.iter().map(|operation| operation.name).collect();
            Table::read().assert_whole(&run, &operations);
        }
    };
}

states! {
    well: "Well",
    away: "Away",
    silent: "Silent",
    slow: "Slow",
    hangs_up: "Hangs up",
    sealed: "Sealed",
    limited: "Limits the rate",
    fails: "Fails",
    redirects: "Redirects elsewhere",
    a_web_page: "A web page answers",
    cut_short: "Answers cut short",
    endless: "Answers without end",
    certificate_of_another: "Certificate not trusted",
    certificate_expired: "Certificate expired",
    token_revoked: "Token revoked",
    token_expired: "Token expired",
    may_not_decrypt: "May not decrypt",
    may_not_encrypt: "May not encrypt",
    may_not_rewrap: "May not rewrap",
    key_deleted: "Master key deleted",
    key_made_anew: "Master key made anew",
    versions_cut_off: "Versions cut off",
    unmounted: "Transit unmounted",
}

/// Runs all cells of this state, as many at once as it has lanes: most of the time they wait.
fn run(name: &str) {
    let state = STATES.iter().find(|state| state.name == name).unwrap();
    // The gentle ones leave no trace and share a node, so they are one piece.
    let (gentle, others): (Vec<_>, Vec<_>) = OPERATIONS.iter().partition(|one| one.gentle);
    let pieces: Vec<Vec<_>> =
        [gentle].into_iter().chain(others.into_iter().map(|one| vec![one])).collect();
    let (table, next, wrong) = (Table::read(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..state.lanes {
            scope.spawn(|| {
                let mut scene = Scene::over(Vault::embedded(state.with_tls));
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = scene.play(state, piece, &table);
                    wrong.lock().unwrap().extend(found);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{name}: {} cell(s)\n{}", wrong.len(), wrong.join("\n"));
}

/// Where a real Vault can be brought into the state, what asks it meets the same as over the embedded one.
#[test]
fn a_real_vault_is_met_alike() {
    let table = Table::read();
    let states: Vec<_> = STATES.iter().filter(|state| state.on_a_real_one).collect();
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut scene = Scene::over(Vault::real());
                while let Some(state) = states.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let asks = |one: &&Operation| table.differs(state.name, one.name);
                    let (gentle, others): (Vec<_>, Vec<_>) =
                        OPERATIONS.iter().filter(asks).partition(|one| one.gentle);
                    let others = others.into_iter().filter(|one| !one.needs_faults);
                    for piece in [gentle].into_iter().chain(others.map(|one| vec![one])) {
                        let found = scene.play(state, &piece, &table);
                        wrong.lock().unwrap().extend(found);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} cell(s)\n{}", wrong.len(), wrong.join("\n"));
}
