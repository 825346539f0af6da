# SPDX-License-Identifier: Apache-2.0
# Run SQLite's own test scripts in Debian's tclsh on Debian's libsqlite3, all in one process:
#     tclsh sqlite_fixture.tcl DIRECTORY-OF-TESTS NAME...
# SQLite builds a program of its own for them, with hooks into the library's inside. Here are stand-ins
# for those that tester.tcl calls by itself; a script that needs others ends there, the same way every
# time. A line a script: PART NAME tests errors how-it-ended.
package require sqlite3

foreach hook {
	sqlite3_test_control_pending_byte sqlite3_shutdown sqlite3_initialize install_malloc_faultsim
	autoinstall_test_functions sqlite3_soft_heap_limit64 sqlite3_hard_heap_limit64
	sqlite3_config_memstatus sqlite3_memdebug_settitle vfs_unlink_test sqlite3_reset_auto_extension
	sqlite3_connection_pointer sqlite3_extended_result_codes sqlite3_db_config optimization_control
	sqlite3_test_control sqlite3_memdebug_vfs_oom_test run_thread_tests sqlite3_enable_shared_cache
	extra_schema_checks sqlite3_config_lookaside sqlite3_config_uri database_may_be_corrupt database_never_corrupt
} {
	proc $hook {args} { return 0 }
}
proc working_64bit_int {} { return 1 }
proc sqlite3_memory_used {} { return 0 }
proc sqlite3_status {args} { return {0 0 0} }
proc sqlite3_exec_nr {db sql} { $db eval $sql }
proc hexio_get_int {hex} {
	binary scan [binary format H* [format %08s $hex]] I number
	return $number
}
proc hexio_read {file offset amount} {
	set stream [open $file rb]
	seek $stream $offset
	binary scan [read $stream $amount] H* hex
	close $stream
	return [string toupper $hex]
}
set ::sqlite_open_file_count 0
set ::sqlite_pending_byte 0x40000000
set ::sqlite_search_count 0
set ::sqlite_sort_count 0

# What this library can do: everything but what its own list of options leaves out.
set absent {
	8_3_names api_armor atomicwrite casesensitivelike configslower crashtest cursorhints
	curdir debug default_autovacuum default_ckptfullfsync direct_read dirsync fast_secure_delete fts1
	fts2 geopoly has_codec hiddencolumns icu icu_collations integrityck like_match_blobs
	lock_proxy_pragmas lookaside mem3 mem5 memdebug memorymanage mmap multiplex_ext_overwrite
	mutex_noop normalize null_trim offset_sql_func oversize_cell_check pagecache_overflow_stats
	prefer_proxy_locking rbu rowid32 rtree_int_only scanstatus snapshot sqllog stat4
	threadsafe2 userauth uri_00_error win32malloc yytrackmaxstackdepth shared_cache snapshot
}
foreach can {
	altertable analyze attach auth autoinc autoindex autoreset autovacuum between_opt bloblit
	builtin_test cast check columnmetadata compileoption_diags complete compound conflict cte
	datetime decltype deprecated deserialize diskio explain floatingpoint foreignkey fts3
	fts3_unicode fts4_deferred fts5 gettable incrblob json1 legacyformat lfs like_opt load_ext
	localtime long_double malloc_usable_size mathlib memorydb mergesort mutex or_opt pager_pragmas
	pragma preupdate progress reindex rtree schema_pragmas schema_version secure_delete session
	stmtvtab subquery tclvar tempdb threadsafe threadsafe1 trace trigger truncate_opt unlock_notify
	update_delete_limit utf16 vacuum view vtab wal windowfunc worker_threads wsd
} {
	set ::sqlite_options($can) 1
}
foreach cannot $absent {
	set ::sqlite_options($cannot) 0
}
foreach limit {
	SQLITE_MAX_LENGTH SQLITE_MAX_COLUMN SQLITE_MAX_SQL_LENGTH SQLITE_MAX_EXPR_DEPTH
	SQLITE_MAX_COMPOUND_SELECT SQLITE_MAX_VDBE_OP SQLITE_MAX_FUNCTION_ARG SQLITE_MAX_ATTACHED
	SQLITE_MAX_VARIABLE_NUMBER SQLITE_MAX_PAGE_COUNT SQLITE_MAX_LIKE_PATTERN_LENGTH
	SQLITE_MAX_TRIGGER_DEPTH SQLITE_MAX_WORKER_THREADS SQLITE_MAX_PAGE_SIZE
	SQLITE_DEFAULT_PAGE_SIZE SQLITE_DEFAULT_CACHE_SIZE TEMP_STORE
} value {
	1000000000 2000 1000000000 1000
	500 250000000 127 10
	250000 1073741823 50000
	1000 8 65536
	4096 -2000 1
} {
	set ::$limit $value
}

set testdir [file normalize [lindex $argv 0]]
set names [lrange $argv 1 end]
set argv {}
set argv0 $testdir/fixture
source $testdir/tester.tcl
rename finish_test finish_test_of_a_whole_run
proc finish_test {} { return -level 2 }
proc finalize_testing {} {}

foreach name $names {
	foreach database {db db2 db3} {
		catch {$database close}
	}
	foreach file [glob -nocomplain test*.db* *.sql] {
		catch {forcedelete $file}
	}
	set ::TC(count) 0
	set ::TC(errors) 0
	set ::TC(fail_list) {}
	set how ended
	set before [info procs]
	if {[catch {reset_db; uplevel #0 source $testdir/$name.test} message]} {
		set how [string map {"\n" " "} "stopped: $message"]
	}
	puts "\nPART $name $::TC(count) $::TC(errors) $how"
	flush stdout
}
puts "END"
