//! Rewrap, takeover, moves between KMSs, from and to local wrapping.

use key_manager::{
    Error, Expected, JobControl, JobState, KeyState, Loss, NewCredential, NewKms, Progress,
};
use kms_core::{Credential, KeyEnvelope, KeyStore as _, KeyVersion, KmsErrorKind};

use crate::world::{Acts, NoControl, World, name, vault};

#[tokio::test]
async fn rewrap_moves_store_and_copies_and_keeps_the_keys() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    for fs in ["a", "b", "c"] {
        node.create(fs).await.unwrap();
    }
    let before = node.bytes("a").await;
    let server = world.kms.server("http://a");
    server.rotate();
    let report = node.rewrap().await.unwrap();
    assert_eq!((report.moved, report.already, report.copies), (3, 0, 3));
    for fs in node.filesystem_statuses().await.unwrap() {
        assert_eq!(fs.version, KeyVersion(2));
    }
    assert_eq!(world.headers.at("/backing/a").wrapped.ciphertext.version, KeyVersion(2));

    // A second rewrap finds nothing to do and sends no key again.
    let asked = server.asked("rewrap");
    let report = node.rewrap().await.unwrap();
    assert_eq!((report.moved, report.already, report.copies), (0, 3, 0));
    assert_eq!(server.asked("rewrap"), asked);

    // Old versions can be retired now: keys, copies and the canary are all beyond them.
    server.set_minimum(2);
    drop(node);
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(node.bytes("a").await, before);
    node.create("d").await.unwrap();
}

/// The first key under a new version takes the canary along, and so does the end of a rewrap.
#[tokio::test]
async fn a_rewrap_ends_well_beside_a_create() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("a").await.unwrap();
    let server = world.kms.server("http://a");
    server.rotate();
    let job = node.start_rewrap(None).await.unwrap();
    let mut canary = server.hold("wrap");
    let (ended, ()) = tokio::join!(node.run_move(job, &NoControl), async {
        canary.reached().await;
        node.create("b").await.unwrap();
        drop(canary);
    });
    assert_eq!(ended.unwrap().moved, 1);
    assert_eq!(node.job(job).await.unwrap().state, JobState::Done);
    server.set_minimum(2);
    drop(node);
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    node.create("c").await.unwrap();
}

/// The KMS is at work on a batch while the copies of the one before are written.
#[tokio::test]
async fn a_rewrap_in_several_batches_loses_no_copy_when_its_kms_goes_away_in_between() {
    const BATCH: usize = 1250;
    let mut world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("fs").await.unwrap();
    drop(node);
    let first = world.headers.at("/backing/fs");
    world.multiply(&first, BATCH).await;
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let server = world.kms.server("http://a");
    server.rotate();
    let copies = |version| {
        let files = world.headers.files.lock().unwrap();
        let of = |it: &&KeyEnvelope| it.wrapped.ciphertext.version == KeyVersion(version);
        files.values().filter(of).count()
    };
    let job = node.start_rewrap(None).await.unwrap();
    let mut first = server.hold("rewrap");
    let (ended, ()) = tokio::join!(node.run_move(job, &NoControl), async {
        first.reached().await;
        let mut second = server.hold("rewrap");
        drop(first);
        second.reached().await;
        server.set_down(Some(KmsErrorKind::Unreachable));
        drop(second);
    });
    assert!(matches!(ended, Err(Error::Kms(_))), "{ended:?}");
    assert_eq!((copies(1), copies(2)), (1, BATCH), "those of the first batch are brought along");
    let progress = node.job(job).await.unwrap().progress;
    assert_eq!((progress.items_done, progress.items_total), (1250, 1251));

    server.set_down(None);
    let report = node.run(job).await.unwrap();
    assert_eq!((report.moved, report.already, report.copies), (1, 1250, 1));
    assert_eq!((copies(1), copies(2)), (0, BATCH + 1));
    let progress = node.job(job).await.unwrap().progress;
    assert_eq!((progress.items_done, progress.items_failed, progress.items_total), (1251, 0, 1251));
}

#[tokio::test]
async fn one_filesystem_alone_can_be_rewrapped() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("a").await.unwrap();
    node.create("b").await.unwrap();
    world.kms.server("http://a").rotate();
    let job = node.start_rewrap(Some(name("b"))).await.unwrap();
    assert_eq!(node.run(job).await.unwrap().moved, 1);
    let versions: Vec<_> =
        node.filesystem_statuses().await.unwrap().iter().map(|s| s.version.0).collect();
    assert_eq!(versions, [1, 2]);
}

#[tokio::test]
async fn a_rewrap_of_one_filesystem_holds_no_other_up() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    for fs in ["a", "b", "c"] {
        node.create(fs).await.unwrap();
    }
    world.kms.server("http://a").rotate();
    let of_a = node.start_rewrap(Some(name("a"))).await.unwrap();
    let busy = node.start_rewrap(Some(name("b"))).await.unwrap_err();
    assert!(matches!(busy, Error::Busy { .. }), "it runs: {busy}");
    assert!(busy.to_string().contains(&format!("the rewrap that job {of_a} does")), "{busy}");
    let mut stopped = node.job(of_a).await.unwrap();
    stopped.state = JobState::Stopped;
    node.save_job(&stopped).await.unwrap();
    let of_b = node.start_rewrap(Some(name("b"))).await.unwrap();
    assert_eq!(node.job(of_a).await.unwrap().state, JobState::Failed);
    let of_all = node.start_rewrap(None).await.unwrap();
    assert_eq!(node.job(of_b).await.unwrap().state, JobState::Failed, "it is one of all");
    let busy = node.start_rewrap(Some(name("c"))).await.unwrap_err();
    assert!(matches!(busy, Error::Busy { .. }), "one of all gives way to none: {busy}");
    assert_eq!(node.run(of_all).await.unwrap().moved, 3);
}

#[tokio::test]
async fn a_rewrap_of_a_filesystem_that_was_deleted_has_nothing_to_do() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("a").await.unwrap();
    let job = node.start_rewrap(Some(name("a"))).await.unwrap();
    node.delete_filesystem(&name("a")).await.unwrap();
    assert_eq!(node.run(job).await.unwrap().moved, 0);
    assert_eq!(node.job(job).await.unwrap().state, JobState::Done);
}

#[tokio::test]
async fn a_new_address_of_the_same_kms_takes_over() {
    let world = World::new();
    let node = world.node().await;
    let first = node.set("http://old").await.unwrap();
    node.create("x").await.unwrap();
    let server = world.kms.server("http://old");
    world.kms.alias("http://new", &server);
    let wraps = server.asked("wrap");
    let second = node.set("http://new").await.unwrap();
    assert_eq!(second.config.id, first.config.id);
    assert_eq!(server.asked("wrap"), wraps + 2, "two canaries and no key were wrapped");
    assert_eq!(world.headers.at("/backing/x").kms.address, "http://new");
    drop(node);
    assert!(world.node().await.unlock_all().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_new_token_for_the_same_kms_needs_no_job() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let again = node.set_kms(vault("http://a")).await.unwrap();
    assert!(again.updated && again.job.is_none());
}

#[tokio::test]
async fn another_kms_takes_the_keys_over_and_the_old_one_is_forgotten() {
    let world = World::new();
    let node = world.node().await;
    let old = node.set("http://old").await.unwrap();
    node.create("x").await.unwrap();
    let before = node.bytes("x").await;
    drop(node);
    // The node has just started: keys come from the old KMS, not from memory.
    let node = world.node().await;
    let new = node.set("http://new").await.unwrap();
    assert_ne!(new.config.id, old.config.id);
    assert_eq!(node.job(new.job.unwrap()).await.unwrap().from_memory(), 0);
    assert_eq!(world.headers.at("/backing/x").kms.address, "http://new");
    let configs = world.store.list("kms/", None, 10).await.unwrap().records;
    assert!(configs.iter().all(|r| !r.key.contains(&old.config.id.to_string())), "{configs:?}");
    world.kms.server("http://old").set_down(Some(KmsErrorKind::Unreachable));
    drop(node);
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(node.bytes("x").await, before);
}

#[tokio::test]
async fn a_kms_that_can_not_take_every_key_changes_nothing() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://old").await.unwrap();
    node.create("x").await.unwrap();
    drop(node);
    world.kms.server("http://old").set_down(Some(KmsErrorKind::Unreachable));
    let node = world.node().await;
    let before = world.store.list("", None, 100).await.unwrap();
    let error = node.set_kms(vault("http://new")).await.unwrap_err();
    assert!(matches!(error, Error::NotAll { failed: 1, .. }), "{error}");
    let error = node.unset_kms(true, &Expected::Whatever).await.unwrap_err();
    assert!(matches!(error, Error::NotAll { failed: 1, .. }), "{error}");
    assert_eq!(world.store.list("", None, 100).await.unwrap(), before);
}

#[tokio::test]
async fn from_local_to_a_kms_stays_exposed_and_erases_the_local_key() {
    let world = World::new();
    let node = world.node().await;
    node.create("x").await.unwrap();
    let before = node.bytes("x").await;
    assert_eq!(world.local.keys(), 1);
    node.set("http://a").await.unwrap();
    assert_eq!(world.local.keys(), 0);
    let envelope = world.headers.at("/backing/x");
    assert!(envelope.exposed && envelope.kms.kind == "fake");
    drop(node);
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(node.bytes("x").await, before);
    assert!(node.filesystem_statuses().await.unwrap()[0].exposed);
}

#[tokio::test]
async fn a_downgrade_works_without_the_kms_and_forgets_its_token() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    node.create("y").await.unwrap();
    let report = node.downgrade().await.unwrap();
    assert_eq!((report.moved, report.copies), (2, 2));
    world.kms.server("http://a").set_down(Some(KmsErrorKind::Unreachable));
    let records = world.store.list("", None, 100).await.unwrap().records;
    assert!(records.iter().all(|r| !String::from_utf8_lossy(&r.value).contains("the-token")));
    drop(node);
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert!(node.filesystem_statuses().await.unwrap().iter().all(|s| s.exposed));
    assert_eq!(node.state("y").await, KeyState::Unlocked);
    assert!(node.kms_overview().await.unwrap().config.is_none());
}

#[tokio::test]
async fn a_new_master_key_under_the_old_name_takes_keys_from_memory() {
    let world = World::new();
    let node = world.node().await;
    let old = node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    world.kms.server("http://a").recreate();
    let new = node.set("http://a").await.unwrap();
    assert_ne!(new.config.id, old.config.id);
    // Said and audited.
    let job = node.job(new.job.unwrap()).await.unwrap();
    assert_eq!(job.from_memory(), 1);
    assert!(job.message.contains("1 key(s) wrapped anew (1 from memory)"), "{}", job.message);
    let events = world.audit.events();
    let from_memory: Vec<_> = events.iter().filter(|it| it.detail == "from memory").collect();
    assert!(matches!(from_memory[..], [it] if it.action == "key.wrap"), "{from_memory:?}");
    drop(node);
    assert!(world.node().await.unlock_all().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_copy_that_can_not_be_written_makes_it_partly_done() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    drop(node);
    world.kms.server("http://a").rotate();
    let node = world.manager(u64::MAX, 0);
    let report = node.rewrap().await.unwrap();
    assert_eq!((report.moved, report.copies, report.failed.len()), (1, 0, 1));
    drop(node);
    let report = world.node().await.rewrap().await.unwrap();
    assert_eq!((report.moved, report.already, report.copies), (0, 1, 1));
}

/// A node that has just started, with a key on a first KMS and one on a second, to which it was moving when that went away for good.
async fn stranded(world: &World) -> (key_manager::KeyManager, key_manager::JobId) {
    let node = world.node().await;
    node.set("http://first").await.unwrap();
    node.create("old").await.unwrap();
    let moving = node.set_kms(vault("http://gone")).await.unwrap().job.unwrap();
    node.create("new").await.unwrap();
    world.kms.server("http://gone").set_down(Some(KmsErrorKind::Unreachable));
    assert!(node.run_move(moving, &NoControl).await.is_err());
    (node, moving)
}

#[tokio::test]
async fn a_move_whose_target_is_gone_gives_way_to_another() {
    for back in [false, true] {
        let world = World::new();
        let (node, stuck) = stranded(&world).await;
        let before = (node.bytes("old").await, node.bytes("new").await);
        let target = if back { "http://first" } else { "http://third" };
        node.set(target).await.unwrap();

        let stuck = node.job(stuck).await.unwrap();
        assert_eq!(stuck.state, JobState::Failed);
        assert!(stuck.message.contains("took its place"), "{}", stuck.message);
        assert!(node.unfinished_move().await.unwrap().is_none());
        let superseded = |event: &kms_core::AuditEvent| event.action == "kms.superseded";
        assert_eq!(world.audit.events().iter().filter(|event| superseded(event)).count(), 1);
        drop(node);
        let node = world.node().await;
        assert!(node.unlock_all().await.unwrap().is_empty());
        assert_eq!((node.bytes("old").await, node.bytes("new").await), before);
        for fs in node.filesystem_statuses().await.unwrap() {
            assert_eq!(fs.wrapped_by.unwrap().address, target);
        }
        assert_eq!(world.store.list("kms/config/", None, 9).await.unwrap().records.len(), 1);
    }
}

#[tokio::test]
async fn a_move_whose_target_is_gone_gives_way_to_local_wrapping() {
    let world = World::new();
    let (node, _) = stranded(&world).await;
    assert!(matches!(
        node.unset_kms(false, &Expected::Whatever).await,
        Err(Error::Encrypted { .. })
    ));
    node.downgrade().await.unwrap();
    drop(node);
    assert!(world.node().await.unlock_all().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_unfinished_downgrade_gives_way_to_a_kms() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://first").await.unwrap();
    node.create("x").await.unwrap();
    node.unset_kms(true, &Expected::Whatever).await.unwrap().unwrap();
    node.set("http://second").await.unwrap();
    let fs = node.filesystem_statuses().await.unwrap().remove(0);
    assert!(!fs.exposed && fs.wrapped_by.unwrap().address == "http://second");
    assert_eq!(world.local.keys(), 0);
}

#[tokio::test]
async fn what_hangs_on_the_gone_kms_alone_is_named() {
    let world = World::new();
    drop(stranded(&world).await);
    let node = world.node().await;
    assert_eq!(node.unlock_all().await.unwrap().len(), 1);
    let before = world.store.list("", None, 100).await.unwrap();
    for error in [
        node.set_kms(vault("http://third")).await.unwrap_err(),
        node.unset_kms(true, &Expected::Whatever).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::NotAll { failed: 1, total: 2, .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("new, wrapped by \"key\" at http://gone, which was asked "),
            "{text}"
        );
        assert!(!text.contains("old") && error.cure().unwrap().contains("fs delete"), "{text}");
    }
    assert_eq!(world.store.list("", None, 100).await.unwrap(), before);
    // Its cure: without what can't be opened, all else goes along.
    node.delete_filesystem(&name("new")).await.unwrap();
    node.set("http://third").await.unwrap();
    assert_eq!(node.state("old").await, KeyState::Unlocked);
}

#[tokio::test]
async fn a_run_whose_place_was_taken_commits_nothing_more() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://first").await.unwrap();
    node.create("x").await.unwrap();
    let slow = node.set_kms(vault("http://slow")).await.unwrap().job.unwrap();
    let mut late = world.kms.server("http://slow").hold("wrap");
    let (ran, set) = tokio::join!(node.run_move(slow, &NoControl), async {
        late.reached().await;
        let set = node.set_kms(vault("http://third")).await.unwrap();
        drop(late);
        set
    });
    assert!(matches!(ran, Err(Error::Changed { .. })), "{ran:?}");
    assert_eq!(node.job(slow).await.unwrap().state, JobState::Failed);
    let on = node.filesystem_statuses().await.unwrap().remove(0).wrapped_by.unwrap();
    assert_eq!(on.address, "http://first");
    node.run(set.job.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_copy_out_of_reach_keeps_the_old_kms_and_is_named() {
    let world = World::new();
    let node = world.node().await;
    let old = node.set("http://old").await.unwrap().config;
    for fs in ["here", "away"] {
        node.create(fs).await.unwrap();
    }
    let configs = async || world.store.list("kms/config/", None, 9).await.unwrap().records.len();
    assert!(node.settle_copies().await.unwrap().is_empty());
    let in_use = node.in_use().await.unwrap();
    assert_eq!(in_use.lowest_needed(old.id), Some(KeyVersion(1)));
    assert_eq!(in_use.blockers(old.id, Some(KeyVersion(1))), Vec::<String>::new());
    assert_eq!(in_use.blockers(old.id, Some(KeyVersion(2))), ["away", "here", "the canary"]);

    world.headers.set_away("/backing/away", true);
    let new = node.set_kms(vault("http://new")).await.unwrap();
    let report = node.run(new.job.unwrap()).await.unwrap();
    assert_eq!((report.moved, report.copies, report.failed.len()), (2, 1, 1));
    drop(node);
    // Neither the node that moved nor the next one takes what it can't see for moved.
    let node = world.node().await;
    assert_eq!(configs().await, 2);
    assert_eq!(node.settle_copies().await.unwrap().len(), 1);
    assert_eq!(configs().await, 2);
    let in_use = node.in_use().await.unwrap();
    assert_eq!(in_use.lowest_needed(new.config.id), None);
    let blockers = in_use.blockers(new.config.id, Some(KeyVersion(1)));
    assert_eq!(blockers, ["a copy of the key of away"]);
    let [(fs, why)] = &in_use.copies_behind[..] else { panic!("{in_use:?}") };
    assert_eq!(fs.as_str(), "away");
    assert!(why.contains("/backing/away") && why.contains("it is away"), "{why}");

    world.headers.set_away("/backing/away", false);
    assert!(node.settle_copies().await.unwrap().is_empty());
    assert_eq!(configs().await, 1);
    let in_use = node.in_use().await.unwrap();
    assert!(in_use.copies_behind.is_empty());
    assert_eq!(in_use.lowest_needed(new.config.id), Some(KeyVersion(1)));
    assert_eq!(world.headers.at("/backing/away").kms.address, "http://new");
}

#[tokio::test]
async fn a_move_whose_node_ends_is_left_for_the_next_one() {
    struct Stops {
        for_now: bool,
    }
    impl JobControl for Stops {
        fn progress(&self, _: Progress) {}

        fn stop_requested(&self) -> bool {
            true
        }

        fn goes_on_later(&self) -> bool {
            self.for_now
        }
    }
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    world.kms.server("http://a").rotate();
    let job = node.start_rewrap(None).await.unwrap();
    for (for_now, state) in [(true, JobState::Running), (false, JobState::Stopped)] {
        assert!(node.run_move(job, &Stops { for_now }).await.unwrap().stopped);
        assert_eq!(node.job(job).await.unwrap().state, state);
    }
    assert_eq!(node.run(job).await.unwrap().moved, 1);
}

#[tokio::test]
async fn the_old_kms_is_kept_alive_while_keys_hang_on_it() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://old").await.unwrap();
    node.create("fs").await.unwrap();
    let old = world.kms.server("http://old");
    let renewed = || old.asked("renew");
    assert_eq!(node.renew_others().await.unwrap().len(), 0, "it is the one that is set");

    let other = Credential::token("another one");
    let new = node
        .set_kms(NewKms { credential: NewCredential::Given(other), ..vault("http://new") })
        .await
        .unwrap();
    let before = renewed();
    let [(config, Ok(_))] = &node.renew_others().await.unwrap()[..] else { panic!() };
    assert_eq!((&*config.address, renewed()), ("http://old", before + 1));
    old.set_down(Some(KmsErrorKind::Denied));
    let [(_, Err(_))] = &node.renew_others().await.unwrap()[..] else { panic!() };
    old.set_down(None);

    node.run(new.job.unwrap()).await.unwrap();
    assert_eq!(node.renew_others().await.unwrap().len(), 0, "nothing hangs on it");
}

#[tokio::test]
async fn what_a_move_leaves_behind_is_seen() {
    let world = World::new();
    let node = world.node().await;
    let old = node.set("http://old").await.unwrap().config;
    node.create("left").await.unwrap();
    let server = world.kms.server("http://old");
    server.rotate();
    node.create("moved").await.unwrap();
    let other = NewKms { master_key: "other".to_owned(), ..vault("http://new") };
    let job = node.set_kms(other).await.unwrap().job.unwrap();
    assert_eq!(node.in_use().await.unwrap().left_behind, [], "it is on its way");
    drop(node);
    server.set_minimum(2);
    let node = world.node().await;
    let report = node.run_move(job, &NoControl).await.unwrap();
    assert_eq!((report.moved, report.failed.len()), (1, 1), "{report:?}");

    let left = node.in_use().await.unwrap().left_behind;
    let [left] = &left[..] else { panic!("{left:?}") };
    assert_eq!((left.config.id, &left.filesystems[..]), (old.id, &["left".to_owned()][..]));
    for (loss, key, hit) in [
        (Loss::Credential, None, 2),
        (Loss::MasterKey, Some("key"), 1),
        (Loss::MasterKey, Some("other"), 1),
        (Loss::MasterKey, None, 1),
    ] {
        let impact = node.impact(loss, key).await.unwrap();
        assert_eq!(impact.shut_at_start.len(), hit, "{loss:?} of {key:?}");
        assert_eq!((impact.left_behind, impact.for_all), (key == Some("key"), key != Some("key")));
    }
    let checked = node.check_kms().await.unwrap();
    let of_old = |item: &&kms_core::CheckItem| item.what.starts_with("key at http://old: ");
    assert!(checked.iter().filter(of_old).any(|item| item.failure.is_some()), "{checked:?}");

    server.set_minimum(1);
    assert_eq!(node.rewrap().await.unwrap().moved, 1);
    assert_eq!(node.in_use().await.unwrap().left_behind, []);
    let gone = node.impact(Loss::MasterKey, Some("key")).await;
    assert!(matches!(gone, Err(Error::Unknown { .. })), "{gone:?}");
}
