//! A disk that UEFI firmware boots: a GPT with one EFI system partition, whose FAT file system
//! holds the loader.
//!
//! Identifiers and times are constant, so that the same files give the same bytes.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use uuid::Uuid;

/// Path at which firmware looks for a program on a volume that no boot entry names (UEFI
/// specification 2.10, section 3.5.1.1).
const FALLBACK: [&str; 3] = ["EFI", "BOOT", "BOOTX64.EFI"];
const SECTOR: u64 = 512;
/// The partition's first sector: 1 MiB, as partitioning tools have it.
const FIRST: u64 = 2048;
/// Sectors of the backup table behind the partition.
const BACKUP: u64 = 33;
/// FAT32 has at least 65,525 clusters (Microsoft's FAT specification, section "FAT Type
/// Determination"); here each is a sector.
const FAT32_LEAST: u64 = 40 << 20;
const ID: u32 = 0x7e55_e2a0;
const LABEL: [u8; 11] = *b"TESSERA    ";
const DISK_GUID: Uuid = Uuid::from_u128(0x7e55_e2a0_0001_4000_8000_0000_0000_0001);
const PARTITION_GUID: Uuid = Uuid::from_u128(0x7e55_e2a0_0001_4000_8000_0000_0000_0002);

/// A file in the root folder of the volume, beside the loader.
pub(crate) struct ExtraFile<'a> {
    pub(crate) name: &'a str,
    pub(crate) contents: &'a [u8],
}

/// Makes a FAT volume that holds the loader where firmware looks for it.
pub(super) fn volume(loader: &[u8], beside: &[ExtraFile<'_>], smallest: bool) -> Result<Vec<u8>> {
    let files = loader.len() + beside.iter().map(|file| file.contents.len()).sum::<usize>();
    // Room for the tables and the folders.
    let needed = (u64::try_from(files)? + (1 << 20)).next_multiple_of(1 << 20);
    let (kind, len) = if smallest {
        (FatType::Fat16, needed.max(5 << 20))
    } else {
        (FatType::Fat32, (needed + (2 << 20)).max(FAT32_LEAST))
    };
    let mut bytes = vec![0; usize::try_from(len)?];
    let cluster = if kind == FatType::Fat16 && len >= 32 << 20 {
        2048
    } else {
        512
    };
    let options = FormatVolumeOptions::new()
        .fat_type(kind)
        .bytes_per_cluster(cluster)
        .volume_id(ID)
        .volume_label(LABEL);
    fatfs::format_volume(Cursor::new(&mut bytes[..]), options)
        .context("can't make a FAT volume")?;
    let volume = FileSystem::new(Cursor::new(&mut bytes[..]), FsOptions::new())
        .context("can't open the volume")?;
    {
        let root = volume.root_dir();
        let [efi, boot, name] = FALLBACK;
        let folder = root.create_dir(efi).and_then(|efi| efi.create_dir(boot));
        let folder = folder.context("can't make the loader's folder")?;
        let mut file = folder
            .create_file(name)
            .context("can't make the loader's file")?;
        file.write_all(loader)
            .context("the volume has no room for the loader")?;
        for ExtraFile { name, contents } in beside {
            let mut file = root
                .create_file(name)
                .with_context(|| format!("can't make {name}"))?;
            file.write_all(contents)
                .with_context(|| format!("the volume has no room for {name}"))?;
        }
    }
    volume.unmount().context("can't end the volume")?;
    Ok(bytes)
}

/// Writes a disk with one partition that holds `volume`.
pub(super) fn write(path: &Path, volume: &[u8]) -> Result<()> {
    let problem = || format!("can't make the disk {}", path.display());
    let sectors = u64::try_from(volume.len())?.div_ceil(SECTOR);
    let total = FIRST + sectors + BACKUP;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .with_context(problem)?;
    file.set_len(total * SECTOR).with_context(problem)?;
    let mbr = ProtectiveMBR::with_lb_size(u32::try_from(total - 1).unwrap_or(u32::MAX));
    mbr.overwrite_lba0(&mut file).with_context(problem)?;
    let config = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512);
    let mut disk = config
        .create_from_device(file, Some(DISK_GUID))
        .with_context(problem)?;
    let partition = Partition {
        part_type_guid: gpt::partition_types::EFI,
        part_guid: PARTITION_GUID,
        first_lba: FIRST,
        last_lba: FIRST + sectors - 1,
        flags: 0,
        name: "tessera".into(),
    };
    disk.update_partitions(BTreeMap::from([(1, partition)]))
        .with_context(problem)?;
    let mut file: File = disk.write().with_context(problem)?;
    file.seek(SeekFrom::Start(FIRST * SECTOR))
        .with_context(problem)?;
    write_sparse(&mut file, volume).with_context(problem)
}

/// Writes all but the zeros, which a new file has anyway.
fn write_sparse(file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
    const BLOCK: usize = 4096;
    for block in bytes.chunks(BLOCK) {
        if block.iter().any(|&byte| byte != 0) {
            file.write_all(block)?;
        } else {
            file.seek(SeekFrom::Current(
                i64::try_from(block.len()).unwrap_or_default(),
            ))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn read(volume: &mut [u8], path: &str) -> Vec<u8> {
        let volume = FileSystem::new(Cursor::new(volume), FsOptions::new()).expect("a volume");
        let mut bytes = Vec::new();
        let mut file = volume.root_dir().open_file(path).expect("the file");
        file.read_to_end(&mut bytes).expect("readable");
        bytes
    }

    #[test]
    fn a_volume_has_the_loader_where_firmware_looks() {
        let loader: Vec<u8> = (0..3_000_000_u32)
            .map(|at| u8::try_from(at % 251).expect("small"))
            .collect();
        let line = ExtraFile {
            name: "tessera.cmdline",
            contents: b"cluster=a",
        };
        for smallest in [false, true] {
            let mut bytes =
                volume(&loader, std::slice::from_ref(&line), smallest).expect("a volume");
            assert!(read(&mut bytes, "EFI/BOOT/BOOTX64.EFI") == loader);
            assert_eq!(read(&mut bytes, "tessera.cmdline"), b"cluster=a");
        }
    }

    #[test]
    fn a_disk_is_the_same_each_time_and_its_table_names_the_partition() {
        let path = std::env::temp_dir().join(format!("tessera-gpt-{}", std::process::id()));
        let made = || {
            let volume = volume(b"the loader", &[], false).expect("a volume");
            write(&path, &volume).expect("a disk");
            std::fs::read(&path).expect("readable")
        };
        let first = made();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert!(first == made());
        let disk = GptConfig::new().open(&path).expect("a GPT");
        let partition = disk.partitions().get(&1).expect("a partition").clone();
        assert_eq!(partition.part_type_guid, gpt::partition_types::EFI);
        let start = usize::try_from(partition.first_lba * SECTOR).expect("small");
        let mut inside = first[start..].to_vec();
        assert_eq!(read(&mut inside, "EFI/BOOT/BOOTX64.EFI"), b"the loader");
        std::fs::remove_file(path).expect("removed");
    }
}
