"""The course: lessons and their notebooks, what must hold of them, and their assignments for nbgrader.

    for lesson in minitf.course.lessons():
        print(lesson.name, lesson.title, lesson.variants)

`lessons` finds the sources, `notebooks` makes the three forms of a lesson, `execute` runs one, `inspect` says
what is wrong with it, `assignments` lays out a course for nbgrader. All but `lessons` need the extra
`minitf[lessons]`.
"""

from minitf.course.lessons import CourseError, Lesson, lessons

__all__ = ["CourseError", "Lesson", "lessons"]
