//! Notes about a filesystem that lie outside its backing directory and name files.

use crate::error::{Doing, Error};
use crate::filesystem::Filesystem;

impl Filesystem {
    /// Seals a note, so that it may lie where names of this filesystem's files must not be read. `context` says what
    /// it is about, and [`Self::open_note`] needs the same.
    ///
    /// # Errors
    /// No random bytes.
    pub fn seal_note(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let sealed = self.tree.keys.current.seal_note(context, plain).doing("described");
        sealed.map_err(|fault| fault.at_path(self.backing()))
    }

    /// Opens what [`Self::seal_note`] sealed.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`](crate::ErrorKind::Damaged): it was altered, or it is a note of another filesystem or context.
    pub fn open_note(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let opened = self.tree.keys.open_note(context, sealed).doing("described");
        opened.map_err(|fault| fault.at_path(self.backing()))
    }
}
