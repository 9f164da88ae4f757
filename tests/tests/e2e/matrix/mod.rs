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
use states::{Real, STATES, State};
use table::{Kept, Table};
use testkit::vault_server::{NEWEST, OLDEST};
use vault::{Vault, Way};

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
    drips: "Slower and slower",
    hangs_up: "Hangs up",
    sealed: "Sealed",
    limited: "Limits the rate",
    fails: "Fails",
    lags: "Lags behind",
    stands_by: "Stands by",
    stands_by_for_a_disaster: "Stands by for a disaster",
    redirects: "Redirects elsewhere",
    a_web_page: "A web page answers",
    cut_short: "Answers cut short",
    endless: "Answers without end",
    certificate_of_another: "Certificate not trusted",
    certificate_expired: "Certificate expired",
    token_revoked: "Token revoked",
    token_expired: "Token expired",
    token_file_gone: "Token file gone",
    token_file_empty: "Token file empty",
    token_file_unreadable: "Token file unreadable",
    secret_id_used_up: "Secret id used up",
    role_deleted: "Role deleted",
    may_not_decrypt: "May not decrypt",
    may_not_encrypt: "May not encrypt",
    may_not_rewrap: "May not rewrap",
    key_deleted: "Master key deleted",
    own_key_deleted: "Own master key deleted",
    key_made_anew: "Master key made anew",
    versions_cut_off: "Versions cut off",
    unmounted: "Transit unmounted",
}

/// Runs all cells of this state, as many at once as it has lanes: most of the time they wait.
fn run(name: &str) {
    let state = STATES.iter().find(|state| state.name == name).unwrap();
    let pieces = pieces(state, |_| true);
    let scene = || Scene::over(Vault::embedded(state.way));
    assert_as_told(&play(state.lanes, scene, &pieces));
}

/// Where a real Vault can be brought into the state, what asks it meets the same as over the embedded one.
#[test]
fn the_newest_vault_is_met_alike() {
    a_real_one_is_met_alike(NEWEST, &[Real::Newest, Real::Each]);
}

#[test]
fn the_oldest_vault_is_met_alike() {
    a_real_one_is_met_alike(OLDEST, &[Real::Each]);
}

fn a_real_one_is_met_alike(variable: &str, which: &[Real]) {
    let table = Table::read();
    let by = |way: Way, lanes: usize| {
        let shown = STATES.iter().filter(|one| one.way == way && which.contains(&one.real));
        // What is the same in every state asks no KMS.
        let asks = |state: &'static State| {
            pieces(state, |operation| table.differs(state.name, operation.name))
        };
        let pieces: Vec<Piece> = shown.flat_map(asks).collect();
        play(lanes, || Scene::over(Vault::real(variable, way)), &pieces)
    };
    let wrong = std::thread::scope(|scope| {
        let by_login = scope.spawn(|| by(Way::Login, 2));
        [by(Way::Token, 5), by_login.join().unwrap()].concat()
    });
    assert_as_told(&wrong);
}

/// What the table says to go on when it is asked for does so by itself within a minute.
#[test]
fn what_is_not_asked_for_again_goes_on_within_a_minute() {
    let table = Table::read();
    let by = |way: Way, lanes: usize| {
        let goes_on = |state: &State, operation: &Operation| {
            let cell = table.cell(state.name, operation.name);
            cell.is_some_and(|row| row.kept == Kept::GoesOnWhenAsked)
        };
        let of_state = |state| pieces(state, |operation| goes_on(state, operation));
        let shown = STATES.iter().filter(|state| state.way == way);
        let pieces: Vec<Piece> = shown.flat_map(of_state).collect();
        assert!(!pieces.is_empty());
        let scene = || Scene::over(Vault::embedded(way)).that_asks_once();
        play(lanes, scene, &pieces)
    };
    let wrong = std::thread::scope(|scope| {
        let by_login = scope.spawn(|| by(Way::Login, 4));
        [by(Way::Token, 10), by_login.join().unwrap()].concat()
    });
    assert_as_told(&wrong);
}

/// Operations that are played in a state, one after the other on one node.
type Piece = (&'static State, Vec<&'static Operation>);

/// All of these operations. The gentle ones leave no trace and share a node, so they are one piece.
fn pieces(state: &'static State, which: impl Fn(&Operation) -> bool) -> Vec<Piece> {
    let all = OPERATIONS.iter().filter(|one| which(one));
    let (gentle, others): (Vec<_>, Vec<_>) = all.partition(|one| one.gentle);
    let gentle = (!gentle.is_empty()).then_some(gentle);
    let others = others.into_iter().map(|one| vec![one]);
    gentle.into_iter().chain(others).map(|operations| (state, operations)).collect()
}

/// Plays them, so many at once, each in a scene that is made for the lane; what was not as the table says.
fn play(lanes: usize, make: impl Fn() -> Scene + Sync, pieces: &[Piece]) -> Vec<String> {
    let (table, next, wrong) = (Table::read(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                let mut scene = make();
                while let Some((state, operations)) =
                    pieces.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let found = scene.play(state, operations, &table);
                    wrong.lock().unwrap().extend(found);
                }
            });
        }
    });
    wrong.into_inner().unwrap()
}

fn assert_as_told(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} cell(s)\n{}", wrong.len(), wrong.join("\n"));
}
