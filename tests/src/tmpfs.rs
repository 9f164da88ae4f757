//! Disks of a size that a test chooses.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A small filesystem in memory, unmounted when dropped.
#[derive(Debug)]
pub struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    /// Mounts one of this size there, which takes root.
    pub fn mount(path: &'a Path, size: &str) -> Self {
        let options = format!("size={size}");
        let flags = MsFlags::empty();
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
            .expect("this test mounts a small filesystem, so it runs as root");
        Self(path)
    }

    /// Lets nothing more be written.
    pub fn make_read_only(&self) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, self.0, None::<&str>, flags, None::<&str>).unwrap();
    }

    /// Gives it another size.
    pub fn resize(&self, size: &str) {
        let options = format!("size={size}");
        let flags = MsFlags::MS_REMOUNT;
        mount(None::<&str>, self.0, None::<&str>, flags, Some(options.as_str())).unwrap();
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}
