//! Calls of the loader to the firmware, in order.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use handover::{DIRECT_BASE, Framebuffer, Handover, LINK_BASE, MAGIC, MAPPED};
use uefi::boot::{self, AllocateType, MemoryType, OpenProtocolAttributes, OpenProtocolParams};
use uefi::fs::FileSystem;
use uefi::mem::memory_map::MemoryMap;
use uefi::prelude::*;
use uefi::proto::console::gop::{GraphicsOutput, PixelFormat};
use uefi::proto::loaded_image::LoadedImage;
use uefi::table::cfg::ConfigTableEntry;
use uefi_loader::image::Image;
use uefi_loader::tables::{Table, Tables};
use uefi_loader::{command_line, sections};
use zerocopy::IntoBytes;

use crate::jump;

const PAGE: usize = 4096;
/// Bytes for what the memory map grows by until the firmware is left.
const MAP_ROOM: usize = 4 * PAGE;
/// Time that a message stays before the firmware starts something else.
const PAUSE: Duration = Duration::from_secs(5);

/// Reasons why nothing was started.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Own(#[from] uefi_loader::Error),
    #[error("the firmware refuses to {what}: {status}")]
    Firmware { what: &'static str, status: Status },
    #[error(
        "no command line: give load options, a file {} in the root folder of the volume, or `build-image --cmdline`",
        command_line::FILE
    )]
    NoCommandLine,
    #[error("the firmware uses page tables of five levels: turn that off in its setup")]
    FiveLevels,
}

/// The request that the firmware refused.
#[derive(Clone, Copy)]
struct Request(&'static str);

#[entry]
fn main() -> Status {
    if let Err(error) = uefi::helpers::init() {
        return error.status();
    }
    let Err(failure) = start();
    uefi::println!("tessera: {failure}");
    boot::stall(PAUSE);
    Status::ABORTED
}

fn start() -> Result<core::convert::Infallible, Failure> {
    if jump::has_five_levels() {
        return Err(Failure::FiveLevels);
    }
    let own = Own::find()?;
    let image = Image::parse(sections::find(own.bytes, sections::IMAGE)?)?;
    let (line, source) = own.command_line()?;
    uefi::println!(
        "tessera: {} KiB, the command line from {source}",
        image.len() >> 10
    );

    let image_len = usize::try_from(image.len()).unwrap_or(usize::MAX);
    let (image_phys, memory) = allocate(image_len, Request("give memory for the image"))?;
    image.load(memory);

    let pages = Tables::pages_for(image.len());
    let (root, memory) = allocate(pages * PAGE, Request("give memory for page tables"))?;
    // SAFETY: whole pages of ours, and any words are a table.
    let tables =
        unsafe { core::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<Table>(), pages) };
    let mut tables = Tables::new(tables, root);
    tables.map(DIRECT_BASE, 0, MAPPED)?;
    tables.map(LINK_BASE, image_phys, image.len())?;
    let (first, last) = own.pages();
    tables.map(first, first, last - first)?;

    let map_room = map_len()? + MAP_ROOM;
    let (record_phys, record) = allocate(
        PAGE + line.len() + map_room,
        Request("give memory for the record"),
    )?;
    let mut handover = Handover {
        magic: MAGIC,
        image: image_phys,
        command_line: record_phys + PAGE as u64,
        command_line_len: line.len() as u64,
        rsdp: rsdp(),
        map: record_phys + (PAGE + line.len()) as u64,
        framebuffer: framebuffer().unwrap_or_default(),
        ..Handover::default()
    };
    record[PAGE..PAGE + line.len()].copy_from_slice(line.as_bytes());

    // SAFETY: nothing of the firmware's is used from here on; what it gave stays where it is.
    let map = unsafe { boot::exit_boot_services(Some(MemoryType::LOADER_DATA)) };
    let meta = map.meta();
    let len = meta.map_size.min(map_room) / meta.desc_size * meta.desc_size;
    record[PAGE + line.len()..][..len].copy_from_slice(&map.buffer()[..len]);
    handover.map_len = len as u64;
    handover.descriptor_len = meta.desc_size as u64;
    record[..size_of::<Handover>()].copy_from_slice(handover.as_bytes());
    // SAFETY: the firmware has been left, and the tables and the record are those made above.
    unsafe { jump::enter(tables.root(), image.entry(), record_phys) }
}

/// This program in memory.
struct Own {
    bytes: &'static [u8],
    options: Vec<u8>,
}

impl Own {
    fn find() -> Result<Self, Failure> {
        let loaded = boot::open_protocol_exclusive::<LoadedImage>(boot::image_handle())
            .map_err(|error| refused("tell where this program is", &error))?;
        let (base, len) = loaded.info();
        let len = usize::try_from(len).unwrap_or_default();
        // SAFETY: the firmware put this program there for as long as it runs, and nothing changes
        // its sections.
        let bytes = unsafe { core::slice::from_raw_parts(base.cast::<u8>(), len) };
        let options = loaded.load_options_as_bytes().unwrap_or_default().to_vec();
        Ok(Self { bytes, options })
    }

    /// The pages that it lies in.
    fn pages(&self) -> (u64, u64) {
        let range = self.bytes.as_ptr_range();
        let page = PAGE as u64;
        (
            range.start.addr() as u64 / page * page,
            (range.end.addr() as u64).next_multiple_of(page),
        )
    }

    /// The command line and where it stood.
    fn command_line(&self) -> Result<(String, &'static str), Failure> {
        if let Some(line) = command_line::from_load_options(&self.options) {
            return Ok((line, "the load options"));
        }
        if let Some(line) = file().and_then(|bytes| command_line::from_text(&bytes)) {
            return Ok((line, "the file"));
        }
        sections::find(self.bytes, sections::COMMAND_LINE)
            .ok()
            .and_then(command_line::from_text)
            .map(|line| (line, "the build"))
            .ok_or(Failure::NoCommandLine)
    }
}

/// The file on the volume that this program came from, if it came from one.
fn file() -> Option<Vec<u8>> {
    let volume = boot::get_image_file_system(boot::image_handle()).ok()?;
    let name = uefi::CString16::try_from(command_line::FILE.to_string().as_str()).ok()?;
    FileSystem::new(volume).read(&*name).ok()
}

/// Takes pages below 4 GiB, which stay the image's own.
fn allocate(len: usize, what: Request) -> Result<(u64, &'static mut [u8]), Failure> {
    let pages = len.div_ceil(PAGE);
    let below = AllocateType::MaxAddress(MAPPED - 1);
    let start = boot::allocate_pages(below, MemoryType::LOADER_DATA, pages)
        .map_err(|error| refused(what.0, &error))?;
    // SAFETY: the firmware has just given these pages.
    let memory = unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), pages * PAGE) };
    memory.fill(0);
    Ok((start.addr().get() as u64, memory))
}

fn refused<T: core::fmt::Debug>(what: &'static str, error: &uefi::Error<T>) -> Failure {
    let status = error.status();
    Failure::Firmware { what, status }
}

/// The bytes of the memory map at this moment.
fn map_len() -> Result<usize, Failure> {
    let map = boot::memory_map(MemoryType::LOADER_DATA)
        .map_err(|error| refused("give its memory map", &error))?;
    Ok(map.meta().map_size)
}

/// ACPI's root pointer, that of version 2 before that of version 1.
fn rsdp() -> u64 {
    system::with_config_table(|entries| {
        let find = |guid| entries.iter().find(|entry| entry.guid == guid);
        find(ConfigTableEntry::ACPI2_GUID)
            .or_else(|| find(ConfigTableEntry::ACPI_GUID))
            .map_or(0, |entry| entry.address.addr() as u64)
    })
}

/// The first screen whose pixels can be written in memory.
fn framebuffer() -> Option<Framebuffer> {
    let handle = boot::get_handle_for_protocol::<GraphicsOutput>().ok()?;
    let params = OpenProtocolParams {
        handle,
        agent: boot::image_handle(),
        controller: None,
    };
    // SAFETY: the screen is only asked about, and stays the console's.
    let screen = unsafe {
        boot::open_protocol::<GraphicsOutput>(params, OpenProtocolAttributes::GetProtocol)
    };
    let mut screen = screen.ok()?;
    let mode = screen.current_mode_info();
    let format = match mode.pixel_format() {
        PixelFormat::Rgb => 0,
        PixelFormat::Bgr => 1,
        _ => return None,
    };
    let (width, height) = mode.resolution();
    let mut buffer = screen.frame_buffer();
    Some(Framebuffer {
        address: buffer.as_mut_ptr().addr() as u64,
        len: buffer.size() as u64,
        width: u32::try_from(width).ok()?,
        height: u32::try_from(height).ok()?,
        stride: u32::try_from(mode.stride()).ok()?,
        format,
    })
}
