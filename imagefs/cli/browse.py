from imagefs.cli.sets import info

ls = cat = stat = find = get = info
