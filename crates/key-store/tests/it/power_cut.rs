//! A power cut, simulated: of what a commit had not yet synced, any subset of sectors may have reached the disk.
//!
//! While a commit runs, `sled/db` goes from one content to the next and `generation` follows after the sync.
//! So between the two, the disk holds the old `generation` and, in each sector of `db`, the old or the new bytes.

use std::fs;

use key_store::SledStore;
use kms_core::KeyStore;

use crate::damage::copy;
use crate::history::{assert_whole, commit, write_up_to};

const SECTOR: usize = 512;
const COMMITS: u64 = 40;
const CUTS: u32 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn leaves_the_old_or_the_new_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut old, mut new) = (0, 0);
    for n in 1..=COMMITS {
        let before = tempfile::tempdir().unwrap();
        copy(dir.path(), before.path());
        store.commit(commit(n)).await.unwrap();
        let mut old_db = fs::read(before.path().join("sled/db")).unwrap();
        let new_db = fs::read(dir.path().join("sled/db")).unwrap();

        // Where the file has grown, what did not arrive reads as zeros.
        old_db.resize(new_db.len().max(old_db.len()), 0);

        for cut in 0..CUTS {
            let crashed = tempfile::tempdir().unwrap();
            copy(before.path(), crashed.path());
            let mut db = new_db.clone();
            for at in (0..db.len()).step_by(SECTOR) {
                let sector = at..db.len().min(at + SECTOR);
                random = xorshift(random);
                // From nothing in the first cut to everything in the last.
                if random % u64::from(CUTS - 1) >= u64::from(cut) {
                    db[sector.clone()].copy_from_slice(&old_db[sector]);
                }
            }
            fs::write(crashed.path().join("sled/db"), db).unwrap();

            let store = SledStore::open(crashed.path())
                .unwrap_or_else(|e| panic!("commit {n}, cut {cut}: {e}"));
            match store.generation().0 {
                found if found == n - 1 => old += 1,
                found if found == n => new += 1,
                found => panic!("commit {n}, cut {cut}: generation {found}"),
            }
            assert_whole(&store).await;
            // And it goes on from there.
            write_up_to(&store, n + 2).await;
            assert_whole(&store).await;
        }
    }
    assert!(old > 0 && new > 0, "{old} old, {new} new: one of them was never tested");
}

fn xorshift(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^ (x << 17)
}
