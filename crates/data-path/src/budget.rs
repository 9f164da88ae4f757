//! How often a file's salt may still be used.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{FormatError, layout};

/// Counts the seals under one salt against those that the file's header reserves.
///
/// With 96-bit random nonces 2^32 seals under one key make a repeated nonce as likely as 2^-32
/// (NIST SP 800-38D, 8.3). A copy of a file that was restored seals on with what its header had
/// left, so each copy stops at 2^30. Seals are reserved in batches and the reservation is durable
/// before it is used, so a process that dies wastes seals and never repeats them.
#[derive(Debug)]
pub struct SealBudget {
    used: AtomicU64,
    granted: AtomicU64,
}

impl SealBudget {
    /// The most seals that one copy of a file may make under one salt.
    pub const LIMIT: u64 = 1 << 30;
    /// Seals are reserved in multiples of this.
    pub const BATCH: u64 = 1 << 16;

    /// For a new salt: nothing on disk can repeat its seals, so all of them are free until a header
    /// is written.
    pub(crate) const fn unrecorded() -> Self {
        Self { used: AtomicU64::new(0), granted: AtomicU64::new(Self::LIMIT) }
    }

    /// For a salt whose header on disk reserves so many: what was reserved counts as used.
    pub(crate) fn resume(&self, reserved: u64) {
        self.used.store(reserved, Ordering::Relaxed);
        self.grant(reserved);
    }

    /// Counts `seals` that are about to be made.
    ///
    /// # Errors
    /// [`FormatError::SealsNotReserved`], and [`FormatError::SealsExhausted`] when no more can be
    /// reserved.
    pub fn take(&self, seals: u64) -> Result<(), FormatError> {
        self.take_of(seals, self.granted.load(Ordering::Relaxed))
    }

    /// Counts the seal of a header that reserves so many: it is one of those that it reserves.
    pub(crate) fn take_for_header(&self, reserved: u64) -> Result<(), FormatError> {
        self.take_of(1, self.granted.load(Ordering::Relaxed).max(reserved.min(Self::LIMIT)))
    }

    /// How many may still be made of those that are granted.
    pub(crate) fn left(&self) -> u64 {
        let granted = self.granted.load(Ordering::Relaxed);
        granted.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    fn take_of(&self, seals: u64, granted: u64) -> Result<(), FormatError> {
        let take = |used: u64| used.checked_add(seals).filter(|&used| used <= granted);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            Err(used) if used.saturating_add(seals) > Self::LIMIT => {
                Err(FormatError::SealsExhausted)
            }
            Err(_) => Err(FormatError::SealsNotReserved),
        }
    }

    /// Lets so many be used in all. The header that says so must be durable.
    pub(crate) fn grant(&self, reserved: u64) {
        self.granted.store(reserved.min(Self::LIMIT), Ordering::Relaxed);
    }

    /// What the header of a new file of this size reserves: the seals made so far or, when that is
    /// more, all that the file needs; in whole batches.
    pub(crate) fn for_new_file(&self, size: u64) -> Result<u64, FormatError> {
        let needed = self.used.load(Ordering::Relaxed).max(seals_of(size));
        let reserved = needed.next_multiple_of(Self::BATCH);
        if reserved > Self::LIMIT { Err(FormatError::SealsExhausted) } else { Ok(reserved) }
    }
}

/// The seals of a file without holes: its blocks, a tag page for each group, a hole map for each
/// region, two copies of the header.
fn seals_of(size: u64) -> u64 {
    let groups = layout::group_count(size);
    size.div_ceil(layout::PAGE as u64) + groups + layout::region_of(groups - 1) + 1 + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(reserved: u64) -> SealBudget {
        let budget = SealBudget::unrecorded();
        budget.resume(reserved);
        budget
    }

    #[test]
    fn a_reservation_is_not_exceeded() {
        let budget = recorded(SealBudget::BATCH);
        assert_eq!(budget.take(1), Err(FormatError::SealsNotReserved));
        budget.grant(2 * SealBudget::BATCH);
        assert_eq!(budget.take(SealBudget::BATCH + 1), Err(FormatError::SealsNotReserved));
        assert_eq!(budget.take(SealBudget::BATCH), Ok(()));
        assert_eq!(budget.take(1), Err(FormatError::SealsNotReserved));
    }

    #[test]
    fn a_header_that_reserves_more_needs_no_grant_first() {
        let budget = recorded(SealBudget::BATCH);
        assert_eq!(budget.take_for_header(2 * SealBudget::BATCH), Ok(()));
        assert_eq!(budget.take_for_header(SealBudget::BATCH), Err(FormatError::SealsNotReserved));
    }

    #[test]
    fn no_grant_goes_past_the_limit() {
        let budget = recorded(SealBudget::LIMIT - 1);
        budget.grant(u64::MAX);
        assert_eq!(budget.take(1), Ok(()));
        assert_eq!(budget.take(1), Err(FormatError::SealsExhausted));
        assert_eq!(budget.take(u64::MAX), Err(FormatError::SealsExhausted));
    }

    #[test]
    fn a_new_file_reserves_what_it_needs() {
        let budget = SealBudget::unrecorded();
        assert_eq!(budget.for_new_file(0), Ok(SealBudget::BATCH));
        assert_eq!(budget.for_new_file(8 << 30), Ok(33 * SealBudget::BATCH));
        budget.take(3 * SealBudget::BATCH + 1).unwrap();
        assert_eq!(budget.for_new_file(0), Ok(4 * SealBudget::BATCH));
        assert_eq!(budget.for_new_file(5 << 40), Err(FormatError::SealsExhausted));
    }
}
